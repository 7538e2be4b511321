package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// examples are those of commands whose constructors bring fewer than two. A test sees
// to it that every command has two that are taken as they are.
var examples = map[string][]string{
	"boot":                           {"brig -q boot"},
	"completion":                     {"source <(brig completion bash)", "brig completion fish >~/.config/fish/completions/brig.fish"},
	"config device add":              {"brig config device add web photos disk pool=default source=photos path=/srv/photos"},
	"config device list":             {"brig config device list web", "brig config device list web -f csv"},
	"config device remove":           {"brig config device remove web photos", "brig config device remove web photos backup"},
	"config device show":             {"brig config device show web", "brig config device show web -f json"},
	"config get":                     {"brig config get web limits.memory", "brig config get web snapshots.schedule"},
	"config show":                    {"brig config show web", "brig config show web -f yaml"},
	"config unset":                   {"brig config unset web snapshots.schedule", "brig config unset web snapshots.keep snapshots.expiry"},
	"console":                        {"brig console web", "brig console web --show-log"},
	"df":                             {"brig df", "brig df web db -f json"},
	"image alias create":             {"brig image alias create base debian:bookworm", "brig image alias create golden 5f2d1c0b9a8e"},
	"image alias delete":             {"brig image alias delete base", "brig image alias delete base golden"},
	"image alias list":               {"brig image alias list", "brig image alias list -f csv"},
	"image alias rename":             {"brig image alias rename base bookworm", "brig image alias rename golden golden-2024"},
	"image delete":                   {"brig image delete base", "brig image delete 5f2d1c0b9a8e golden"},
	"image history":                  {"brig image history docker:library/nginx:1.27", "brig image history base -f json"},
	"image list":                     {"brig image list", "brig image list debian -f csv"},
	"image prune":                    {"brig image prune --dry-run", "brig image prune --all"},
	"image push":                     {"brig image push golden docker://registry.example.org/golden:1"},
	"image refresh":                  {"brig image refresh debian:bookworm", "brig image refresh"},
	"image set":                      {"brig image set base auto-update=true"},
	"image show":                     {"brig image show base", "brig image show debian:bookworm -f json"},
	"info":                           {"brig info web", "brig info web -f json"},
	"kernel list":                    {"brig kernel list", "brig kernel list -f json"},
	"list":                           {"brig list status=running -c ns4", "brig list user.role=front -c n,user.role:ROLE,boot.autostart -f csv"},
	"remote list":                    {"brig remote list", "brig remote list -f json"},
	"rename":                         {"brig rename web www", "brig rename web-new web"},
	"shell":                          {"brig shell web", "brig shell web --user app"},
	"snapshot create":                {"brig snapshot create web clean", "brig snapshot create web"},
	"snapshot delete":                {"brig snapshot delete web clean", "brig snapshot delete web snap0 snap1"},
	"snapshot list":                  {"brig snapshot list web", "brig snapshot list web -f csv"},
	"snapshot mount":                 {"brig snapshot mount web/clean /mnt", "brig snapshot mount db/snap0 /srv/look"},
	"snapshot rename":                {"brig snapshot rename web snap0 clean", "brig snapshot rename web clean before-upgrade"},
	"snapshot restore":               {"brig snapshot restore web clean", "brig snapshot restore web clean --volumes"},
	"snapshot unmount":               {"brig snapshot unmount /mnt", "brig snapshot unmount /srv/look"},
	"storage delete":                 {"brig storage delete fast", "brig storage delete --force gone"},
	"storage get":                    {"brig storage get fast size", "brig storage get default source"},
	"storage info":                   {"brig storage info default", "brig storage info fast -f json"},
	"storage list":                   {"brig storage list", "brig storage list -f yaml"},
	"storage show":                   {"brig storage show default", "brig storage show fast -f json"},
	"storage volume copy":            {"brig storage volume copy default/photos fast/photos", "brig storage volume copy default/photos/monday default/old"},
	"storage volume delete":          {"brig storage volume delete default photos", "brig storage volume delete --now default photos old"},
	"storage volume detach":          {"brig storage volume detach default photos web", "brig storage volume detach default photos web album"},
	"storage volume get":             {"brig storage volume get default db size", "brig storage volume get default photos user.owner"},
	"storage volume import":          {"brig storage volume import default backup.tar.gz photos"},
	"storage volume info":            {"brig storage volume info default photos", "brig storage volume info default photos -f json"},
	"storage volume list":            {"brig storage volume list", "brig storage volume list default -f csv"},
	"storage volume move":            {"brig storage volume move default/photos fast/photos", "brig storage volume move default/photos default/album"},
	"storage volume rename":          {"brig storage volume rename default photos album", "brig storage volume rename fast db db-old"},
	"storage volume set":             {"brig storage volume set default db size=40GiB"},
	"storage volume snapshot create": {"brig storage volume snapshot create default photos monday", "brig storage volume snapshot create default photos"},
	"storage volume snapshot delete": {"brig storage volume snapshot delete default photos monday", "brig storage volume snapshot delete default photos snap0 snap1"},
	"storage volume snapshot list":   {"brig storage volume snapshot list default photos", "brig storage volume snapshot list default photos -f json"},
	"storage volume snapshot rename": {"brig storage volume snapshot rename default photos snap0 monday", "brig storage volume snapshot rename default photos monday keep"},
	"storage volume unset":           {"brig storage volume unset default db user.owner", "brig storage volume unset default photos user.a user.b"},
	"tick":                           {"brig tick", "BRIG_DIR=/srv/brig brig tick"},
	"trash empty":                    {"brig trash empty web", "brig trash empty --all"},
	"trash list":                     {"brig trash list", "brig trash list -f json"},
	"version":                        {"brig version", "brig version -f json"},
}

// addExamples completes the help of all commands below one.
func addExamples(root *cobra.Command) {
	for path, lines := range examples {
		c, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			continue // a test tells
		}
		var b strings.Builder
		b.WriteString(c.Example)
		for _, line := range lines {
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString("  " + line)
		}
		c.Example = b.String()
	}
}

// Commands gives the tree of all commands, with all that their help says, for what
// makes documents of it. They are not to be run.
func Commands() *cobra.Command {
	root := newRoot(&session{})
	addExamples(root)
	return root
}
