package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"brig/images"
	"brig/images/archive"
	"brig/images/debian"
	"brig/images/disk"
	"brig/images/export"
	"brig/images/incusbackup"
	"brig/images/oci"
	"brig/images/oci/registries"
	"brig/images/simplestreams"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/filemount"
	"brig/instance/keeper"
	"brig/instance/manager"
	"brig/instance/network"
	"brig/lxc"
	"brig/qemu"
	"brig/qemu/boot"
	"brig/storage"
	"brig/storage/btrfs"
	"brig/storage/look"
	"brig/storage/lvm"
	"brig/storage/overlay"
	"brig/storage/registry"
	"brig/storage/zfs"
)

// mountFiles shows files by FUSE.
func mountFiles(ctx context.Context, o manager.FileMount, ready func()) error {
	return filemount.Serve(ctx, filemount.Options{
		Target: o.Target, Source: o.Source, Path: o.Path, ReadOnly: o.ReadOnly,
		Connect: func(ctx context.Context) (*filemount.Conn, error) {
			client, done, err := o.Connect(ctx)
			if err != nil {
				return nil, err
			}
			return &filemount.Conn{Client: client, Done: done}, nil
		},
	}, ready)
}

// Compose makes the manager with its drivers. It is the one place that names
// them.
func Compose(o Options) (Manager, error) {
	h, err := helpers()
	if err != nil {
		return nil, err
	}
	records := images.OpenStore(filepath.Join(o.Dirs.State, "images"), filepath.Join(o.Dirs.Run, "locks"))
	kernels := boot.New(filepath.Join(o.Dirs.State, "kernels"))
	registry := oci.New(records, oci.Options{Registries: func() (registries.Config, error) {
		return registries.Load(append(registries.System(), filepath.Join(o.Dirs.State, "registries.conf"))...)
	}})
	sources := images.Sources{
		images.ProtocolOCI:           registry,
		images.ProtocolDebian:        debian.Source{},
		images.ProtocolSimplestreams: simplestreams.New(records, simplestreams.Options{}),
	}
	return manager.New(manager.Config{
		Dirs:    o.Dirs,
		BrigDir: o.BrigDir,
		Helpers: h,
		Drivers: []instance.Driver{lxc.New(keeper.Spawn), qemu.New(kernels)},
		Pools:   pools(o),
		Images:  records,
		Source: func(ref images.Ref) (images.Source, error) {
			if ref.Remote == manager.ImportRemote {
				return files{archive.New(registry, lookIntoDisk)}, nil
			}
			return sources, nil
		},
		Exporter: registry,
		Backups: func(ctx context.Context, r io.Reader) (manager.ForeignBackup, error) {
			return incusbackup.Open(ctx, r)
		},
		Files:      export.Files{},
		Disks:      disks{},
		Kernels:    kernelStore{kernels},
		Network:    network.New(o.Dirs, ""),
		FileMounts: mountFiles,
		Looker:     looker{look.NewMounts(filepath.Join(o.Dirs.Run, "looks"))},
		Sweep:      func() error { return beside(o, "sweep") },
		Again:      func(id, name string) error { return beside(o, "again", id, name) },
		Care:       func() error { return beside(o, "image", "refresh", "--due") },
		Progress:   o.Progress,
		Notice:     o.Notice,
		Failpoints: manager.ParseFailpoints(o.Failpoints),
	}), nil
}

// pools are the pools of this brig, with the drivers there are.
func pools(o Options) *registry.Registry {
	return registry.New(registry.Options{
		Owner: func() (storage.Owner, error) {
			id, err := o.Dirs.Identity()
			host, _ := os.Hostname()
			return storage.Owner{ID: id, Host: host, Dir: o.Dirs.State}, err
		},
		Dir: filepath.Join(o.Dirs.State, "storage"),
		Default: storage.Record{
			Name:        manager.DefaultPool,
			Driver:      "overlay",
			Description: "Made on first use",
			Config:      map[string]string{"source": filepath.Join(o.Dirs.State, "pools", manager.DefaultPool)},
		},
		Drivers: map[string]registry.Driver{
			"overlay": overlay.Driver{},
			"btrfs":   btrfs.Driver{Files: filepath.Join(o.Dirs.State, "pools"), Mounts: filepath.Join(o.Dirs.Run, "pools")},
			"lvm":     lvm.Driver{Files: filepath.Join(o.Dirs.State, "pools"), Mounts: filepath.Join(o.Dirs.Run, "lvm")},
			"zfs":     zfs.Driver{Files: filepath.Join(o.Dirs.State, "pools"), Mounts: filepath.Join(o.Dirs.Run, "pools")},
		},
	})
}

// files is the source of the image files on this host.
type files struct{ *archive.Importer }

func (f files) Resolve(ctx context.Context, ref images.Ref, o images.ResolveOptions) (images.Remote, error) {
	return f.Open(ctx, ref.Name, o)
}

// looker gives the manager the views of package look.
type looker struct{ *look.Mounts }

func (looker) Open(ctx context.Context, root storage.Root) (*os.File, func() error, error) {
	v, err := look.Open(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	return v.Dir, v.Close, nil
}

func (looker) Change(_ context.Context, root storage.Root) (*os.File, error) {
	return look.Change(root)
}

// lookIntoDisk shows the files of a disk that somebody else made: what fsck has
// nothing to say against.
func lookIntoDisk(ctx context.Context, disk string) (*os.File, func() error, error) {
	root := storage.Root{DiskPath: disk, DiskFormat: "raw"}
	wrong, err := look.Check(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	if len(wrong) > 0 {
		return nil, nil, fault.New(fault.Invalid, "its file system is damaged: %s", strings.Join(wrong, "; "))
	}
	return looker{}.Open(ctx, root)
}

func (looker) Check(ctx context.Context, root storage.Root) ([]string, error) {
	return look.Check(ctx, root)
}

type disks struct{}

func (disks) Make(ctx context.Context, tree, dst, fingerprint string, size int64) error {
	return disk.Make(ctx, tree, dst, disk.Options{Size: size, UUID: disk.UUIDFor(fingerprint)})
}

func (disks) Copy(ctx context.Context, src, format, dst string) error {
	return disk.Copy(ctx, src, format, dst)
}

// kernelStore gives the manager the kernels of package boot.
type kernelStore struct{ *boot.Store }

func (k kernelStore) List(context.Context) ([]manager.KernelInfo, error) {
	list, err := k.Store.List()
	if err != nil {
		return nil, err
	}
	infos := make([]manager.KernelInfo, len(list))
	for i, l := range list {
		infos[i] = kernelInfo(l)
		infos[i].Default = i == 0
	}
	return infos, nil
}

func (k kernelStore) Import(ctx context.Context, source string, p images.Progress) (manager.KernelInfo, error) {
	task := p.Task("Importing the kernel", 0, false)
	defer task.Done()
	info, err := k.Store.Import(ctx, source, boot.ImportOptions{})
	return kernelInfo(info), err
}

func (k kernelStore) For(ctx context.Context, tree *os.Root, fingerprint string, p images.Progress) (*instance.Kernel, error) {
	if tree != nil {
		kernel, err := k.FromTree(ctx, tree, fingerprint)
		if err == nil {
			return &kernel, nil
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
	}
	var task images.Task
	kernel, err := k.Ensure(ctx, func(what string) {
		if task != nil {
			task.Done()
		}
		task = p.Task(what, 0, false)
	})
	if task != nil {
		task.Done()
	}
	return &kernel, err
}

func kernelInfo(i boot.Info) manager.KernelInfo {
	info := manager.KernelInfo{Name: i.Name, Version: i.Version, Source: i.Source, Created: i.ImportedAt}
	if st, err := os.Stat(i.Image); err == nil {
		info.Size = st.Size()
	}
	return info
}

// beside starts a command in a process that outlives this one.
func beside(o Options, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find brig's own program file: %w", err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Env = os.Environ()
	if o.BrigDir != "" {
		cmd.Env = append(cmd.Env, "BRIG_DIR="+o.BrigDir)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start brig %s: %w", strings.Join(args, " "), err)
	}
	return cmd.Process.Release()
}
