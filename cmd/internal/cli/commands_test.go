package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

// TestCommandsAskTheManager shows what each command line makes the manager do,
// and what it prints about it.
func TestCommandsAskTheManager(t *testing.T) {
	cases := []struct {
		line   string
		calls  []string
		stdout string
		stderr string
	}{
		{"launch debian:bookworm web2", []string{"launch {Name:web2 Project:default Image:debian:bookworm Empty:false Type:container Config:map[] Devices:map[] Profiles:[] Pool: Description: Ephemeral:false Command:[] NoNetwork:false} {Wait: Timeout:0s}"},
			"", "Launching web2\nLaunched web2 (container) at 10.86.0.7\n"},
		{"launch debian:bookworm", []string{"launch {Name: Project:default Image:debian:bookworm Empty:false Type:container Config:map[] Devices:map[] Profiles:[] Pool: Description: Ephemeral:false Command:[] NoNetwork:false} {Wait: Timeout:0s}"},
			"brave-otter\n", "Launching\nLaunched brave-otter (container) at 10.86.0.7\n"},
		{"-q launch debian:bookworm", []string{"launch {Name: Project:default Image:debian:bookworm Empty:false Type:container Config:map[] Devices:map[] Profiles:[] Pool: Description: Ephemeral:false Command:[] NoNetwork:false} {Wait: Timeout:0s}"},
			"brave-otter\n", ""},
		{"launch oci:d:1 job --vm -c a.b=c=d -c e= -d root,size=9GiB -d data,type=disk,path=/d -p big -p small -e --no-network --description x --wait ready --timeout 2m -- /bin/job --once -x", []string{
			"launch {Name:job Project:default Image:oci:d:1 Empty:false Type:virtual-machine Config:map[a.b:c=d e:] Devices:map[data:map[path:/d type:disk] root:map[size:9GiB]] Profiles:[big small] Pool: Description:x Ephemeral:true Command:[/bin/job --once -x] NoNetwork:true} {Wait:ready Timeout:2m0s}"},
			"", "Launching job\nLaunched job (virtual-machine) at 10.86.0.7\n"},
		{"init debian:bookworm c1 -q", []string{"create {Name:c1 Project:default Image:debian:bookworm Empty:false Type:container Config:map[] Devices:map[] Profiles:[] Pool: Description: Ephemeral:false Command:[] NoNetwork:false}"}, "", ""},
		{"create debian:bookworm c1 -s tank", []string{"create {Name:c1 Project:default Image:debian:bookworm Empty:false Type:container Config:map[] Devices:map[] Profiles:[] Pool:tank Description: Ephemeral:false Command:[] NoNetwork:false}"}, "", "Creating c1\nCreated c1 (container)\n"},
		{"storage create big overlay source=/srv/brig --description d", []string{"create pool {Name:big Driver:overlay Description:d Config:map[source:/srv/brig] CreatedAt:0001-01-01 00:00:00 +0000 UTC New:false}"}, "", "Created the pool big\n"},
		{"storage create fast btrfs --size 20GiB", []string{"create pool {Name:fast Driver:btrfs Description: Config:map[size:20GiB] CreatedAt:0001-01-01 00:00:00 +0000 UTC New:false}"}, "", "Created the pool fast\n"},
		{"storage create old btrfs source=/dev/sdb --adopt", []string{"adopt pool old btrfs map[source:/dev/sdb]"}, "", "Adopted the pool old\n"},
		{"storage delete gone --force", []string{"forget pool gone"}, "", "Took the pool gone off the list\n"},
		{"storage set fast size=40GiB description=d", []string{"set pool fast map[description:d size:40GiB]"}, "", ""},
		{"storage set fast size 40GiB", []string{"set pool fast map[size:40GiB]"}, "", ""},
		{"storage get default source", nil, "/var/lib/brig/pools/default\n", ""},
		{"storage get tank description", nil, "The big one\n", ""},
		{"storage delete big", []string{"delete pool big"}, "", "Deleted the pool big\n"},
		{"storage volume create default db --type=block size=20GiB --description d", []string{"create volume {Pool:default Name:db Content:block Description:d Config:map[size:20GiB]}"}, "", "Created the volume db in pool default\n"},
		{"storage volume import default x/netinst.ISO", []string{"import volume {Pool:default Name:netinst File:x/netinst.ISO Type: Description: Config:map[]}"}, "", "Imported x/netinst.ISO as the volume netinst in pool default\n"},
		{"storage volume import default disc cd user.a=b --type=iso", []string{"import volume {Pool:default Name:cd File:disc Type:iso Description: Config:map[user.a:b]}"}, "", "Imported disc as the volume cd in pool default\n"},
		{"storage volume create default photos", []string{"create volume {Pool:default Name:photos Content:filesystem Description: Config:map[]}"}, "", "Created the volume photos in pool default\n"},
		{"storage volume set default db size=40GiB user.a=b", []string{"configure volume default db {Set:map[size:40GiB user.a:b] Unset:[]}"}, "", "Configured the volume db\n"},
		{"storage volume set default db size 40GiB", []string{"configure volume default db {Set:map[size:40GiB] Unset:[]}"}, "", "Configured the volume db\n"},
		{"storage volume unset default db user.a", []string{"configure volume default db {Set:map[] Unset:[user.a]}"}, "", "Configured the volume db\n"},
		{"storage volume get default db size", nil, "20GiB\n", ""},
		{"storage volume copy default/db default/db2", []string{"copy volume {Pool:default Name:db Snapshot: ToPool:default To:db2 VolumeOnly:false}"}, "", "Copied default/db to default/db2\n"},
		{"storage volume cp default/db/s tank/db --volume-only", []string{"copy volume {Pool:default Name:db Snapshot:s ToPool:tank To:db VolumeOnly:true}"}, "", "Copied default/db/s to tank/db\n"},
		{"storage volume mv default/db tank/db", []string{"move volume {Pool:default Name:db Snapshot: ToPool:tank To:db VolumeOnly:false}"}, "", "Moved default/db to tank/db\n"},
		{"storage volume rename default db old", []string{"rename volume default db old"}, "", "Renamed the volume db to old\n"},
		{"storage volume rm default db", []string{"delete volume default db"}, "", "Deleted the volume db\n"},
		{"storage volume snapshot create default db s --description d", []string{`snapshot volume default db "s" "d" false`}, "", "Kept the volume db as s\n"},
		{"storage volume snapshot create default db -q", []string{`snapshot volume default db "" "" false`}, "snap0\n", ""},
		{"storage volume snapshot restore default db s", []string{"restore volume default db s"}, "", "Restored the volume db to s\n"},
		{"storage volume snapshot restore default db s --restart", []string{"restore volume default db s with restart"}, "", "Restored the volume db to s\n"},
		{"undo default/db", []string{"undo volume default db"}, "", "Undid the restore to \"v1\" on default/db\n"},
		{"undo default/db --restart", []string{"undo volume default db with restart"}, "", "Undid the restore to \"v1\" on default/db\n"},
		{"undo default/db --forget", []string{"forget undo of volume default db"}, "", "Forgot the state of default/db before\n"},
		{"storage volume snapshot rename default db s t", []string{"rename volume snapshot default db s t"}, "", "Renamed s of the volume db to t\n"},
		{"storage volume snapshot rm default db s t", []string{"delete volume snapshot default db s", "delete volume snapshot default db t"}, "", "Deleted s of the volume db\nDeleted t of the volume db\n"},
		{"storage volume attach default photos web /srv/p", []string{"attach {Pool:default Volume:photos Instance:web Device: Path:/srv/p ReadOnly:false}"}, "", "Attached photos to web\n"},
		{"storage volume attach default photos web p /srv/p --readonly", []string{"attach {Pool:default Volume:photos Instance:web Device:p Path:/srv/p ReadOnly:true}"}, "", "Attached photos to web\n"},
		{"storage volume attach default db db disk", []string{"attach {Pool:default Volume:db Instance:db Device:disk Path: ReadOnly:false}"}, "", "Attached db to db; it will have it after its next start\n"},
		{"storage volume detach default photos web", []string{"detach {Pool:default Volume:photos Instance:web Device: Path: ReadOnly:false}"}, "", "Detached photos from web\n"},
		{"config device add web p disk pool=default source=photos path=/p", []string{"add device {Instance:web Name:p Device:map[path:/p pool:default source:photos type:disk]}"}, "", "Added the device p to web\n"},
		{"config device add db d disk pool=default source=db", []string{"add device {Instance:db Name:d Device:map[pool:default source:db type:disk]}"}, "", "Added the device d to db; it will have it after its next start\n"},
		{"config device rm web p q", []string{"remove device web p", "remove device web q"}, "", "Removed the device p from web\nRemoved the device q from web\n"},
		{"snapshot restore web clean --volumes", []string{"restore web clean with volumes"}, "", "Restored web to clean\n"},
		{"start job --wait ready --timeout 90", []string{"start job {Wait:ready Timeout:1m30s}"}, "", "Started job\n"},
		{"stop web", []string{"stop web {Force:false Timeout:0s}"}, "", "Stopped web\n"},
		{"stop web -f", []string{"stop web {Force:true Timeout:0s}"}, "", "Stopped web\n"},
		{"stop web --timeout -1", []string{"stop web {Force:false Timeout:-1s}"}, "", "Stopped web\n"},
		{"stop web --timeout 0", []string{"stop web {Force:true Timeout:0s}"}, "", "Stopped web\n"},
		{"restart web --timeout 1m", []string{"restart web {Force:false Timeout:1m0s}"}, "", "Restarted web\n"},
		{"pause web", []string{"pause web"}, "", "Paused web\n"},
		{"unfreeze db", []string{"resume db"}, "", "Resumed db\n"},
		{"rename job old", []string{"rename job old"}, "", "Renamed job to old\n"},
		{"rm job", []string{"delete job {Force:false Now:false}"}, "", "Deleted job\n"},
		{"delete --force web", []string{"delete web {Force:true Now:false}"}, "", "Deleted web\n"},
		{"delete --now job", []string{"delete job {Force:false Now:true}"}, "", "Deleted job\n"},
		{"trash restore gone", []string{`restore trash gone ""`}, "", "Restored gone\n"},
		{"trash restore 4123456789abcdef --as back", []string{`restore trash 4123456789abcdef "back"`}, "", "Restored back\n"},
		{"trash empty gone", []string{`empty trash ["gone"]`}, "", "Removed for good: 2 instances\n"},
		{"trash empty --all", []string{`empty trash []`}, "", "Removed for good: 3 instances, 1 volume\n"},
		{"trash restore tank/photos", []string{`restore trash tank/photos ""`}, "", "Restored tank/photos\n"},
		{"storage volume delete --now default photos", []string{"delete volume default photos now"}, "", "Deleted the volume photos\n"},
		{"storage volume snapshot create default photos s --expiry 7d", []string{`snapshot volume default photos "s" "" true`}, "", "Kept the volume photos as s\n"},
		{"undo web", []string{"undo web"}, "", "Undid the restore to \"clean\" on web\n"},
		{"undo web --forget", []string{"forget undo web"}, "", "Forgot the state of web before\n"},
		{"rebuild web", []string{`rebuild web of ""`}, "", "Rebuilt web\n"},
		{"rebuild web debian:trixie", []string{`rebuild web of "debian:trixie"`}, "", "Rebuilt web\n"},
		{"export web -", []string{"export {Name:web Snapshot: InstanceOnly:false Compression: Base: Earlier:<nil>}"}, "backup of web\n", ""},
		{"export web/clean - --instance-only --compression=none", []string{"export {Name:web Snapshot:clean InstanceOnly:true Compression:none Base: Earlier:<nil>}"}, "backup of web\n", ""},
		{"import /dev/null", []string{"import {Name: Project:default Pool: Increments:[]} of 0 bytes"}, "", "Imported web (container)\n"},
		{"import /dev/null back -s big", []string{"import {Name:back Project:default Pool:big Increments:[]} of 0 bytes"}, "", "Imported back (container)\n"},
		{"cp web web2", []string{"copy {Source:web Snapshot: Name:web2 Project:default Profiles:[] Pool: InstanceOnly:false KeepIdentity:false Refresh:false Verify:false}"}, "", "Copied web to web2\n"},
		{"copy web/clean web3", []string{"copy {Source:web Snapshot:clean Name:web3 Project:default Profiles:[] Pool: InstanceOnly:false KeepIdentity:false Refresh:false Verify:false}"}, "", "Copied web/clean to web3\n"},
		{"copy web -q", []string{"copy {Source:web Snapshot: Name: Project:default Profiles:[] Pool: InstanceOnly:false KeepIdentity:false Refresh:false Verify:false}"}, "brave-otter\n", ""},
		{"copy web web2 -s big --instance-only", []string{"copy {Source:web Snapshot: Name:web2 Project:default Profiles:[] Pool:big InstanceOnly:true KeepIdentity:false Refresh:false Verify:false}"}, "", "Copied web to web2\n"},
		{"copy web backup --refresh --verify", []string{"copy {Source:web Snapshot: Name:backup Project:default Profiles:[] Pool: InstanceOnly:false KeepIdentity:false Refresh:true Verify:true}"}, "", "Refreshed backup from web\n"},
		{"move job -s big", []string{"move {Source:job Name: Pool:big InstanceOnly:false}"}, "", "Moved job to pool big\n"},
		{"mv job old", []string{"move {Source:job Name:old Pool: InstanceOnly:false}"}, "", "Renamed job to old\n"},
		{"move job old --storage big --instance-only", []string{"move {Source:job Name:old Pool:big InstanceOnly:true}"}, "", "Moved job to pool big as old\n"},
		{"df web db -f csv,noheader", []string{`space ["web" "db"]`}, "db,tank,0,?,?,?,,\nweb,default,2,314572800,293601280,20971520,,\nweb/snap0,default,,304087040,300941312,3145728,,\nweb (undo),default,,309329920,308281344,1048576,,\n,default,,42949672960,,20971520,107374182400,64424509440\n,tank,,?,,0,?,?\n", ""},
		{"snapshot create web clean --description d --expiry 3d", []string{`snapshot web clean "d" expires=true`}, "", "Kept web as clean\n"},
		{"snapshot create web clean --no-expiry", []string{`snapshot web clean "" expires=false`}, "", "Kept web as clean\n"},
		{"snapshot create web clean --expiry 2h30m", []string{`snapshot web clean "" expires=true`}, "", "Kept web as clean\n"},
		{"config set web user.a=b=c limits.cpu=2", []string{"configure web {Set:map[limits.cpu:2 user.a:b=c] Unset:[]}"}, "", "Configured web; it will obey limits.cpu after its next start\n"},
		{"config set web user.a b", []string{"configure web {Set:map[user.a:b] Unset:[]}"}, "", "Configured web\n"},
		{"config unset web user.a user.b", []string{"configure web {Set:map[] Unset:[user.a user.b]}"}, "", "Configured web\n"},
		{"config get web limits.memory", nil, "1GiB\n", ""},
		{"profile create tiny limits.memory=64MiB --description d", []string{"create profile {Name:tiny Description:d Config:map[limits.memory:64MiB] Devices:map[]}"}, "", "Created the profile tiny\n"},
		{"profile set small limits.cpu 1", []string{"change profile {Name:small Description: Config:map[limits.cpu:1 limits.memory:64MiB] Devices:map[photos:map[type:none]]}"}, "", "Changed the profile small; web will obey limits.cpu after its next start\n"},
		{"profile unset small limits.memory", []string{"change profile {Name:small Description: Config:map[] Devices:map[photos:map[type:none]]}"}, "", "Changed the profile small; web will obey limits.cpu after its next start\n"},
		{"profile device remove small photos", []string{"change profile {Name:small Description: Config:map[limits.memory:64MiB] Devices:map[]}"}, "", "Changed the profile small; web will obey limits.cpu after its next start\n"},
		{"profile device add small data disk pool=default source=data path=/data", []string{"change profile {Name:small Description: Config:map[limits.memory:64MiB] Devices:map[data:map[path:/data pool:default source:data type:disk] photos:map[type:none]]}"}, "", "Added the device data to the profile small; web will obey limits.cpu after its next start\n"},
		{"profile device set small photos path=/srv", []string{"change profile {Name:small Description: Config:map[limits.memory:64MiB] Devices:map[photos:map[path:/srv type:none]]}"}, "", "Changed the device photos of the profile small; web will obey limits.cpu after its next start\n"},
		{"profile get small limits.memory", nil, "64MiB\n", ""},
		{"profile copy small tiny", []string{"copy profile small tiny"}, "", "Copied the profile small to tiny\n"},
		{"profile rename small tiny", []string{"rename profile small tiny"}, "", "Renamed the profile small to tiny\n"},
		{"profile delete small tiny", []string{"delete profile small", "delete profile tiny"}, "", "Deleted the profile small\nDeleted the profile tiny\n"},
		{"profile assign web small,default", []string{"change web", "to {Description: Ephemeral:false Config:map[limits.memory:1GiB user.note:yes] Devices:map[] Profiles:[small default]}"}, "", "web has small, default\n"},
		{"profile assign web", []string{"change web", "to {Description: Ephemeral:false Config:map[limits.memory:1GiB user.note:yes] Devices:map[] Profiles:[]}"}, "", "web has no profiles\n"},
		{"profile add web small", []string{"change web", "to {Description: Ephemeral:false Config:map[limits.memory:1GiB user.note:yes] Devices:map[] Profiles:[default small]}"}, "", "Added the profile small to web\n"},
		{"profile remove web default", []string{"change web", "to {Description: Ephemeral:false Config:map[limits.memory:1GiB user.note:yes] Devices:map[] Profiles:[]}"}, "", "Removed the profile default from web\n"},
		{"copy web web2 -p small", []string{"copy {Source:web Snapshot: Name:web2 Project:default Profiles:[small] Pool: InstanceOnly:false KeepIdentity:false Refresh:false Verify:false}"}, "", "Copied web to web2\n"},
		{"tick", []string{"tick"}, "", ""},
		{"snapshot diff web", []string{"diff {Name:web From: To:}"}, "+ /etc/new\n- /etc/old\uFFFD[31m\n~ /srv/data (content, mode)\n", ""},
		{"snapshot diff web/clean snap0 -f csv", []string{"diff {Name:web From:clean To:snap0}"}, "added,/etc/new,\nremoved,/etc/old\uFFFD[31m,\nchanged,/srv/data,\"content, mode\"\n", ""},
		{"snapshot mount web/clean /mnt", []string{"mount web clean /mnt"}, "", "Mounted web/clean at /mnt\n"},
		{"snapshot umount /mnt", []string{"unmount /mnt"}, "", "Unmounted /mnt\n"},
		{"file pull web/clean/etc/a/b /tmp/x -r", []string{"pull {Name:web Path:clean/etc/a/b Target:/tmp/x Output:<nil> Recursive:true Parents:false}"}, "", ""},
		{"file pull web//etc/a -p -", []string{"pull {Name:web Path:/etc/a Target: Output:<nil> Recursive:false Parents:true}"}, "content", ""},
		{"file push a b web/srv/ -r --uid 0 --gid 5 --mode 0640", []string{"push web srv/ [a b] input=false 0:5:640 recursive=true parents=false"}, "", ""},
		{"file push - web/etc/a -p", []string{"push web etc/a [] input=true -:-:- recursive=false parents=true"}, "", ""},
		{"file edit web/etc/a", []string{"push web etc/a [] input=true -:-:- recursive=false parents=false"}, "", ""},
		{"file delete web/a db/b -f", []string{"delete {Name:web Path:a Recursive:false Force:true}", "delete {Name:db Path:b Recursive:false Force:true}"}, "", ""},
		{"file mkdir web/a --mode 1777", []string{"mkdir web a -:-:1777 parents=false"}, "", ""},
		{"file list web/etc -f csv", nil, "a\uFFFDb,file,4755,1000,5,12,1970/01/01 00:00 UTC\nl -> /etc,symlink,0777,0,0,4,1970/01/01 00:00 UTC\n", ""},
		{"snapshot create web -q", []string{`snapshot web  "" expires=false`}, "snap0\n", ""},
		{"snapshot restore web clean", []string{"restore web clean"}, "", "Restored web to clean\n"},
		{"snapshot rename web clean pure", []string{"rename snapshot web clean pure"}, "", "Renamed clean of web to pure\n"},
		{"snapshot delete web clean snap0", []string{"delete snapshot web clean", "delete snapshot web snap0"}, "", "Deleted clean of web\nDeleted snap0 of web\n"},
		{"console web --show-log", nil, "web login: \n", ""},
		{"image pull debian:bookworm --vm --alias base", []string{"pull debian:bookworm {VM:true Alias:base Architecture: AutoUpdate:false}"}, "", "Pulled debian:bookworm: 5f2d1c0b9a8e\n"},
		{"image pull docker:app:1 --arch amd64 --auto-update", []string{"pull docker:app:1 {VM:false Alias: Architecture:amd64 AutoUpdate:true}"}, "", "Pulled docker:app:1: 5f2d1c0b9a8e\n"},
		{"publish web", []string{"publish {Name:web Snapshot: Alias: Reuse:false Properties:map[]}"}, "5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655\n", "Published web\n"},
		{"publish web/clean golden os=debian description=d --reuse", []string{"publish {Name:web Snapshot:clean Alias:golden Reuse:true Properties:map[description:d os:debian]}"}, "", "Published web/clean as golden\n"},
		{"publish web --alias golden", []string{"publish {Name:web Snapshot: Alias:golden Reuse:false Properties:map[]}"}, "", "Published web as golden\n"},
		{"image export base oci:/srv/base:1", []string{"export image base oci:/srv/base:1"}, "sha256:5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655\n", "Exported base to oci:/srv/base:1\n"},
		{"image export base", []string{"export files {Image:base To: Type:unified Compression:}"}, "base.tar.xz\n", "Exported base\n"},
		{"image export base base.QCOW2 --compression=zstd", []string{"export files {Image:base To:base.QCOW2 Type:qcow2 Compression:zstd}"}, "base.tar.xz\n", "Exported base\n"},
		{"image export base /srv/base --type=split", []string{"export files {Image:base To:/srv/base Type:split Compression:}"}, "base.tar.xz\n", "Exported base\n"},
		{"image push base docker://127.0.0.1:5000/base:1", []string{"export image base docker://127.0.0.1:5000/base:1"}, "sha256:5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655\n", "Pushed base to docker://127.0.0.1:5000/base:1\n"},
		{"image alias create web base", []string{"alias web base"}, "", "Called base web\n"},
		{"image alias rename web www", []string{"rename alias web www"}, "", "Renamed web to www\n"},
		{"image alias rm web", []string{"delete alias web"}, "", "Deleted the alias web\n"},
		{"image set-property base os Debian", []string{"set property base os=Debian"}, "", ""},
		{"image unset-property base os", []string{"set property base os=away"}, "", ""},
		{"image set base auto-update=true", []string{"set image base auto-update=true"}, "", ""},
		{"image set base cached=no", []string{"set image base cached=false"}, "", ""},
		{"image refresh base", []string{"refresh image base"}, "", "base is up to date\n"},
		{"image refresh app", []string{"refresh image app"}, "", "Refreshed app: aa11bb22cc33\n"},
		{"image refresh --due", []string{"care for images"}, "", ""},
		{"image prune", []string{"prune images {All:false DryRun:false}"}, "", "Deleted aa11bb22cc33 (docker:library/app:1): it has no name\n"},
		{"image prune --all --dry-run", []string{"prune images {All:true DryRun:true}"}, "", "Would delete aa11bb22cc33 (docker:library/app:1): it has no name\n"},
		{"image import ./meta.tar.xz ./root.squashfs --arch x86_64", []string{"import ./meta.tar.xz {Alias: Architecture:x86_64 Rootfs:./root.squashfs}"}, "5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655\n", "Imported ./meta.tar.xz\n"},
		{"image search debian -f csv -c t --arch all", []string{"search debian all"}, "SYSTEM\nDISK\n", ""},
		{"image import ./f.tar --alias base", []string{"import ./f.tar {Alias:base Architecture: Rootfs:}"}, "5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655\n", "Imported ./f.tar\n"},
		{"image rm base", []string{"delete image base"}, "", "Deleted base\n"},
		{"kernel import", []string{`import kernel ""`}, "linux-image-6.1.0-32-cloud-amd64\n", "Imported the kernel linux-image-6.1.0-32-cloud-amd64 (6.1.0-32-cloud-amd64)\n"},
	}
	for _, c := range cases {
		t.Run(c.line, func(t *testing.T) {
			f := world()
			r := f.run(t, strings.Fields(c.line)...)
			if r.code != 0 || r.stdout != c.stdout || r.stderr != c.stderr {
				t.Errorf("exit code %d\nstdout %q, want %q\nstderr %q, want %q", r.code, r.stdout, c.stdout, r.stderr, c.stderr)
			}
			if !slices.Equal(f.calls, c.calls) {
				t.Errorf("calls\n%q\nwant\n%q", f.calls, c.calls)
			}
		})
	}
}

// TestWrongInputIsRefused shows the error and the exit code, and that nothing
// was asked of the manager.
func TestWrongInputIsRefused(t *testing.T) {
	cases := []struct {
		line string
		code int
		says string
	}{
		{"frobnicate", 2, `unknown command "frobnicate" for "brig"`},
		{"lst", 2, `did you mean "list"?`},
		{"restore web s1", 2, `unknown command "restore" for "brig"; here it is brig snapshot restore NAME SNAPSHOT`},
		{"ps", 2, "here it is brig list"},
		{"snapshot web s1", 2, `unknown command "web" for "brig snapshot"; did you mean brig snapshot create NAME [SNAPSHOT]?`},
		{"snapshot creat web", 2, `did you mean "create"?`},
		{"image lst", 2, `unknown command "lst" for "brig image"; did you mean "list"?`},
		{"profile device set small photos type=nic", 2, "the type of a device stays"},
		{"profile unset small limits.mem", 2, "limits.memory"},
		{"profile unset small user.a", 3, `"user.a" is not set`},
		{"profile show small -f table", 2, "want yaml or json"},
		{"project show customer -f csv", 2, "want yaml or json"},
		{"list --nope", 2, "unknown flag: --nope\nRun 'brig list --help' for usage.\n"},
		{"launch", 2, "needs more arguments: want brig launch IMAGE [NAME]"},
		{"launch a b c", 2, `got "c" too much`},
		{"launch -- x", 2, "needs more arguments"},
		{"storage volume import default disc", 2, "--type=iso"},
		{"create --empty --vm a b", 2, "too much"},
		{"launch", 2, "more arguments"},
		{"storage volume create default", 2, "needs more arguments: want brig storage volume create POOL VOLUME"},
		{"storage volume copy default/db db2", 2, `cannot use "db2": want POOL/VOLUME`},
		{"storage volume copy default/db/s/x default/db2", 2, `want POOL/VOLUME or POOL/VOLUME/SNAPSHOT`},
		{"storage volume move default/ default/db2", 2, `cannot use "default/": want POOL/VOLUME`},
		{"storage volume get default db nothing", 3, `"nothing" is not set`},
		{"storage volume delete default a a", 2, `"a" is given twice`},
		{"config device add web p disk type=x", 2, `type is given twice`},
		{"config device set web none a=b", 3, `it has no device "none" of its own`},
		{"config device unset web none a a", 2, `"a" is given twice`},
		{"config device override web none", 3, `no profile of it has a device "none"`},
		{"launch i n -c nokey", 2, `cannot use the configuration "nokey": want KEY=VALUE`},
		{"launch i n -c a=1 -c a=2", 2, `"a" is given twice`},
		{"launch i n -d root", 2, `cannot use the device "root": want NAME,KEY=VALUE`},
		{"launch i n -d root,size", 2, `cannot use "size" in the device "root"`},
		{"launch i n -p a --no-profiles", 2, "exclude each other"},
		{"launch i n --wait done", 2, `cannot wait for "done"`},
		{"launch i n --timeout 5", 2, "--timeout is for --wait"},
		{"stop web --timeout soon", 2, `cannot use the timeout "soon"`},
		{"stop web --timeout -5", 2, `cannot use the timeout "-5"`},
		{"stop web web", 2, `"web" is given twice`},
		{"stop", 2, "needs more arguments: want brig stop NAME|PATTERN..."},
		{"copy web/", 2, `cannot copy "web/": want NAME or NAME/SNAPSHOT`},
		{"delete web/clean", 2, "use: brig snapshot delete web clean"},
		{"trash empty", 2, "give the names of deleted instances or volumes, or --all"},
		{"trash empty gone --all", 2, "give the names of deleted instances or volumes, or --all"},
		{"trash empty gone gone", 2, `"gone" is given twice`},
		{"trash restore nobody", 3, `there is no "nobody" in the trash`},
		{"snapshot create web s --expiry 3x", 2, `cannot use the expiry "3x"`},
		{"snapshot create web s --expiry 3d --no-expiry", 2, "exclude each other"},
		{"snapshot create web s --expiry 2001-01-01T00:00:00Z", 2, "has passed already"},
		{"snapshot diff web/", 2, "want NAME or NAME/SNAPSHOT"},
		{"snapshot diff web -f xml", 2, `unknown format "xml"`},
		{"snapshot mount web /mnt", 2, "want NAME/SNAPSHOT"},
		{"file pull web /tmp", 2, "want NAME/PATH"},
		{"launch debian:bookworm web --user-data /none", 3, "--user-data"},
		{"launch debian:bookworm web --ssh-key /dev/null", 2, "it has no key"},
		{"file push a b - web/x", 2, "standard input together"},
		{"file push a web/x --mode 0999", 2, "octal"},
		{"file push a web/x --uid 4294967295", 2, "--uid"},
		{"file pull web/a web/b /none", 2, "no directory"},
		{"config set web", 2, "needs more arguments"},
		{"config set web user.a", 2, `cannot use the configuration "user.a"`},
		{"config set web a=1 a=2", 2, "given twice"},
		{"config get web limits.cpu", 3, `"limits.cpu" is not set`},
		{"config get nobody limits.cpu", 3, `there is no instance "nobody"`},
		{"list -c n!", 2, `unknown column "!" in "n!"`},
		{"list -c n,,s", 2, "one of them is empty"},
		{"list -f xml", 2, `unknown format "xml"`},
		{"list -f json,header", 2, `unknown option "header" of format "json"`},
		{"list (", 2, "it is no regular expression"},
		{"top --sort size", 2, `cannot sort by "size": want one of cpu, memory`},
		{"top --interval 1ms", 2, "cannot measure every 1ms: want at least 100ms"},
		{"top web", 2, `got "web" too much`},
		{"info web -f table", 2, `unknown format "table": want text, json or yaml`},
		{"image pull a b --alias c", 2, "pull them one by one"},
		{"image list -c q", 2, `unknown column "q"`},
		{"completion tcsh", 2, `cannot complete for the shell "tcsh"`},
		{"exec web", 125, "needs more arguments"},
		{"exec web ls -la", 125, "flags of the command inside go behind --"},
		{"exec web -t -T -- ls", 125, "exclude each other"},
		{"exec web --env A -- ls", 125, `cannot set the variable "A": want NAME=VALUE`},
		{"exec web --user a:b --group c -- ls", 125, "already has a group"},
		{"info nobody", 3, `there is no instance "nobody"`},
		{"start nobody", 3, `there is no instance "nobody"`},
		{"exec nobody -- ls", 125, `there is no instance "nobody"`},
		{"image show nobody", 3, `there is no image "nobody"`},
		{"delete web", 4, `cannot delete instance "web": it is running`},
	}
	for _, c := range cases {
		t.Run(c.line, func(t *testing.T) {
			f := world()
			r := f.run(t, strings.Fields(c.line)...)
			if r.code != c.code || !strings.Contains(r.stderr, c.says) || !strings.HasPrefix(r.stderr, "Error: ") {
				t.Errorf("exit code %d, want %d; stderr %q, want %q in it", r.code, c.code, r.stderr, c.says)
			}
			if r.stdout != "" {
				t.Errorf("stdout %q, want nothing", r.stdout)
			}
			if (c.code == 2) && len(f.calls) > 0 {
				t.Errorf("asked the manager for %q", f.calls)
			}
		})
	}
}

func TestSeveralNamesGiveALineEachAndTheWorstCode(t *testing.T) {
	f := world()
	r := f.run(t, "delete", "job", "nobody", "web", "db", "-f")
	if r.code != 3 || r.stderr != "" && strings.Count(r.stderr, "Error: ") != 1 {
		t.Errorf("exit code %d, want 3; stderr %q", r.code, r.stderr)
	}
	r = f.run(t, "delete", "nobody", "web", "job")
	if r.code != 4 {
		t.Errorf("exit code %d, want 4", r.code)
	}
	for _, want := range []string{"Deleted job\n", `Error: there is no instance "nobody"`, `Error: cannot delete instance "web"`} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("stderr %q lacks %q", r.stderr, want)
		}
	}
}

func TestWorseOrder(t *testing.T) {
	order := []int{0, 2, 3, 4, 8, 124, 1, 130}
	for i, low := range order {
		for _, high := range order[i+1:] {
			if worse(low, high) != high || worse(high, low) != high {
				t.Errorf("worse(%d, %d) = %d, %d, want %d", low, high, worse(low, high), worse(high, low), high)
			}
		}
	}
}

func TestOnlyRootComesToTheManager(t *testing.T) {
	app := App{UID: 1000, Compose: func(Options) (Manager, error) {
		t.Error("composed a manager")
		return nil, nil
	}}
	r := world().runIn(t, t.Context(), app, "list")
	if r.code != 5 || !strings.Contains(r.stderr, "cannot use /var/lib/brig as user 1000: brig works as root") {
		t.Errorf("exit code %d, want 5; stderr %q", r.code, r.stderr)
	}
	for _, line := range []string{"version", "help", "completion bash", "remote list", "__complete start "} {
		if r := world().runIn(t, t.Context(), app, strings.Split(line, " ")...); r.code != 0 {
			t.Errorf("brig %s: exit code %d, stderr %q", line, r.code, r.stderr)
		}
	}
}

func TestBrigDirIsObeyed(t *testing.T) {
	f := world()
	dir := t.TempDir()
	f.runIn(t, t.Context(), App{Getenv: func(name string) string { return map[string]string{"BRIG_DIR": dir + "/x/../y"}[name] }}, "list")
	if got, want := f.options.Dirs.State, dir+"/y/state"; got != want {
		t.Errorf("state is in %q, want %q", got, want)
	}
}

func TestInterruptionHasItsOwnCode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := world()
	f.launch = func(ctx context.Context, _ manager.CreateRequest) error {
		cancel()
		<-ctx.Done()
		return fault.New(fault.Unavailable, "the registry went away")
	}
	if r := f.runIn(t, ctx, App{}, "launch", "debian:bookworm", "x"); r.code != 130 {
		t.Errorf("exit code %d, want 130; stderr %q", r.code, r.stderr)
	}
}

func TestCompletion(t *testing.T) {
	cases := map[string]string{
		"start ":                   "web\trunning db\tfrozen job\tstopped lost\terror :4",
		"stop web ":                "db\tfrozen job\tstopped lost\terror :4",
		"exec web ":                ":4",
		"snapshot restore web ":    "clean\t2024/05/06 07:04 UTC snap0\t2024/05/06 07:05 UTC :4",
		"snapshot restore web c x": ":4",
		"copy web/":                "web/clean\t2024/05/06 07:04 UTC web/snap0\t2024/05/06 07:05 UTC :4",
		"snapshot diff web/clean ": "snap0\t2024/05/06 07:05 UTC :4",
		"file pull web/":           "web/clean/\t2024/05/06 07:04 UTC web/snap0/\t2024/05/06 07:05 UTC :6",
		"config unset web ":        "limits.memory user.note :4",
		"trash restore ":           "gone\tdeleted 2024/05/06 07:20 UTC old\tdeleted tank/photos\tdeleted 2024/05/06 07:18 UTC :4",
		"trash empty gone ":        "old\tdeleted tank/photos\tdeleted 2024/05/06 07:18 UTC :4",
		"image show ":              "base\tDebian bookworm deb\tDebian bookworm debian:bookworm\tDebian bookworm docker:library/app:1\tApp \uFFFD[31mone :4",
		"image pull ":              "debian: docker: ghcr: images: quay: ubuntu: :6",
		"launch base ":             ":4",
		"list -f ":                 "table compact csv json yaml :4",
		"storage volume copy ":     "default/ tank/ :6",
		"completion ":              "bash zsh fish :4",
	}
	for line, want := range cases {
		r := world().run(t, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if got := strings.ReplaceAll(strings.TrimSpace(r.stdout), "\n", " "); got != want {
			t.Errorf("%q completes to %q, want %q", line, got, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := world().run(t, "completion", shell); r.code != 0 || !strings.Contains(r.stdout, "brig") {
			t.Errorf("completion %s: exit code %d", shell, r.code)
		}
	}
}

func TestErrorsCannotDriveTheTerminal(t *testing.T) {
	f := world()
	f.launch = func(context.Context, manager.CreateRequest) error {
		return fault.New(fault.Unavailable, "the registry says: \x1b]0;owned\x07\nand more")
	}
	r := f.run(t, "-q", "launch", "docker:evil", "x")
	if want := "Error: the registry says: \uFFFD]0;owned\uFFFD\nand more\n"; r.stderr != want || r.code != 8 {
		t.Errorf("exit code %d, stderr %q, want 8, %q", r.code, r.stderr, want)
	}
}

func TestHelpersAreFoundBesideBrig(t *testing.T) {
	dir := t.TempDir()
	program := func(path string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bin := filepath.Join(dir, "bin")
	if h, err := helpersBeside(bin); !fault.Is(err, fault.Unsupported) {
		t.Errorf("helpersBeside with none there = %v, %v, want unsupported", h, err)
	}
	want := instance.Helpers{Keeper: program("lib/brig/brig-keeper"), Guest: program("lib/brig/brig-guest")}
	if h, err := helpersBeside(bin); err != nil || h != want {
		t.Errorf("helpersBeside installed = %v, %v, want %v", h, err, want)
	}
	want = instance.Helpers{Keeper: program("bin/brig-keeper"), Guest: program("bin/brig-guest")}
	if h, err := helpersBeside(bin); err != nil || h != want {
		t.Errorf("helpersBeside as built = %v, %v, want %v", h, err, want)
	}
}
