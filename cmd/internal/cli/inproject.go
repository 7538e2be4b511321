package cli

import (
	"context"
	"io"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/manager"
	"brig/instance/project"
	"brig/instance/store"
	"brig/storage"
)

// inProject is a manager for those who work in a project: the names that they give are
// those of its instances, and they see no others. Full names are good as they are.
type inProject struct {
	Manager
	project string
}

func (p inProject) full(name string) string { return project.Full(p.project, name) }

// mine tells whether an instance is of the project.
func (p inProject) mine(full string) bool { return project.Of(full) == p.project }

// optional is full for a name that may be missing.
func (p inProject) optional(name string) string {
	if name == "" {
		return ""
	}
	return p.full(name)
}

func (p inProject) Create(ctx context.Context, r manager.CreateRequest) (*instance.Spec, error) {
	r.Name, r.Project = p.optional(r.Name), p.project
	return p.Manager.Create(ctx, r)
}

func (p inProject) Launch(ctx context.Context, r manager.CreateRequest, o manager.StartOptions) (*instance.Spec, error) {
	r.Name, r.Project = p.optional(r.Name), p.project
	return p.Manager.Launch(ctx, r, o)
}

func (p inProject) Copy(ctx context.Context, r manager.CopyRequest) (*instance.Spec, error) {
	r.Source, r.Name, r.Project = p.full(r.Source), p.optional(r.Name), p.project
	return p.Manager.Copy(ctx, r)
}

func (p inProject) Rename(ctx context.Context, name, to string) error {
	return p.Manager.Rename(ctx, p.full(name), p.full(to))
}

func (p inProject) Move(ctx context.Context, r manager.MoveRequest) error {
	r.Source, r.Name = p.full(r.Source), p.optional(r.Name)
	return p.Manager.Move(ctx, r)
}

func (p inProject) Rebuild(ctx context.Context, name, image string) error {
	return p.Manager.Rebuild(ctx, p.full(name), image)
}

func (p inProject) ExportInstance(ctx context.Context, r manager.BackupRequest, to io.Writer) error {
	r.Name = p.full(r.Name)
	return p.Manager.ExportInstance(ctx, r, to)
}

func (p inProject) ImportInstance(ctx context.Context, r manager.BackupSource, from io.Reader) (*instance.Spec, error) {
	r.Name, r.Project = p.optional(r.Name), p.project
	return p.Manager.ImportInstance(ctx, r, from)
}

func (p inProject) Delete(ctx context.Context, name string, o manager.DeleteOptions) error {
	return p.Manager.Delete(ctx, p.full(name), o)
}

func (p inProject) Start(ctx context.Context, name string, o manager.StartOptions) error {
	return p.Manager.Start(ctx, p.full(name), o)
}

func (p inProject) Stop(ctx context.Context, name string, o manager.StopOptions) error {
	return p.Manager.Stop(ctx, p.full(name), o)
}

func (p inProject) Restart(ctx context.Context, name string, o manager.StopOptions) error {
	return p.Manager.Restart(ctx, p.full(name), o)
}

func (p inProject) Pause(ctx context.Context, name string) error {
	return p.Manager.Pause(ctx, p.full(name))
}

func (p inProject) Resume(ctx context.Context, name string) error {
	return p.Manager.Resume(ctx, p.full(name))
}

func (p inProject) List(ctx context.Context) ([]manager.View, error) {
	views, err := p.Manager.List(ctx)
	return slices.DeleteFunc(views, func(v manager.View) bool { return !p.mine(v.Spec.Name) }), err
}

func (p inProject) Get(ctx context.Context, name string, o manager.GetOptions) (*manager.View, error) {
	return p.Manager.Get(ctx, p.full(name), o)
}

func (p inProject) Exec(ctx context.Context, name string, c instance.Command) (int, error) {
	return p.Manager.Exec(ctx, p.full(name), c)
}

func (p inProject) Console(ctx context.Context, name string, o instance.ConsoleOptions) error {
	return p.Manager.Console(ctx, p.full(name), o)
}

func (p inProject) ConsoleLog(ctx context.Context, name string, w io.Writer) error {
	return p.Manager.ConsoleLog(ctx, p.full(name), w)
}

func (p inProject) CreateSnapshot(ctx context.Context, name, snapshot string, r manager.SnapshotRequest) (string, error) {
	return p.Manager.CreateSnapshot(ctx, p.full(name), snapshot, r)
}

func (p inProject) Snapshots(ctx context.Context, name string) ([]instance.Snapshot, error) {
	return p.Manager.Snapshots(ctx, p.full(name))
}

func (p inProject) RestoreSnapshot(ctx context.Context, name, snapshot string, o manager.RestoreOptions) error {
	return p.Manager.RestoreSnapshot(ctx, p.full(name), snapshot, o)
}

func (p inProject) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	return p.Manager.DeleteSnapshot(ctx, p.full(name), snapshot)
}

func (p inProject) RenameSnapshot(ctx context.Context, name, snapshot, to string) error {
	return p.Manager.RenameSnapshot(ctx, p.full(name), snapshot, to)
}

func (p inProject) Diff(ctx context.Context, r manager.DiffRequest, each func(manager.Change) error) error {
	r.Name = p.full(r.Name)
	return p.Manager.Diff(ctx, r, each)
}

func (p inProject) MountSnapshot(ctx context.Context, name, snapshot, target string) error {
	return p.Manager.MountSnapshot(ctx, p.full(name), snapshot, target)
}

func (p inProject) PullFile(ctx context.Context, r manager.FileRequest) error {
	r.Name = p.full(r.Name)
	return p.Manager.PullFile(ctx, r)
}

func (p inProject) PushFiles(ctx context.Context, r manager.PushRequest) error {
	r.Name = p.full(r.Name)
	return p.Manager.PushFiles(ctx, r)
}

func (p inProject) MountFiles(ctx context.Context, r manager.FileMountRequest, ready func()) error {
	r.Name = p.full(r.Name)
	return p.Manager.MountFiles(ctx, r, ready)
}

func (p inProject) ListFiles(ctx context.Context, name, path string) ([]manager.FileInfo, error) {
	return p.Manager.ListFiles(ctx, p.full(name), path)
}

func (p inProject) DeleteFile(ctx context.Context, r manager.RemoveRequest) error {
	r.Name = p.full(r.Name)
	return p.Manager.DeleteFile(ctx, r)
}

func (p inProject) MakeDirectory(ctx context.Context, r manager.DirectoryRequest) error {
	r.Name = p.full(r.Name)
	return p.Manager.MakeDirectory(ctx, r)
}

// Trash shows what is of the project, and the custom volumes, which are of all.
func (p inProject) Trash(ctx context.Context, o manager.GetOptions) ([]manager.TrashView, error) {
	list, err := p.Manager.Trash(ctx, o)
	list = slices.DeleteFunc(list, func(v manager.TrashView) bool { return v.Class == storage.Instances && !p.mine(v.Name) })
	for i := range list {
		if list[i].Class == storage.Instances {
			list[i].Name = project.Short(list[i].Name)
		}
	}
	return list, err
}

// deleted makes of what is in the trash, NAME, ID or POOL/VOLUME, what it is called in
// all projects.
func (p inProject) deleted(what string) string {
	if strings.Contains(what, "/") || store.ValidID(what) {
		return what
	}
	return p.full(what)
}

func (p inProject) RestoreTrash(ctx context.Context, nameOrID, as string) (string, error) {
	if !strings.Contains(nameOrID, "/") {
		as = p.optional(as)
	}
	name, err := p.Manager.RestoreTrash(ctx, p.deleted(nameOrID), as)
	if !strings.Contains(name, "/") {
		name = project.Short(name)
	}
	return name, err
}

func (p inProject) EmptyTrash(ctx context.Context, namesOrIDs []string) (manager.Emptied, error) {
	names := make([]string, len(namesOrIDs))
	for i, what := range namesOrIDs {
		names[i] = p.deleted(what)
	}
	if len(names) > 0 {
		return p.Manager.EmptyTrash(ctx, names)
	}
	list, err := p.Manager.Trash(ctx, manager.GetOptions{})
	if err != nil {
		return manager.Emptied{}, err
	}
	others := false
	for _, v := range list {
		switch {
		case v.Class != storage.Instances: // of all projects, and left to those in the default one
			if p.project == project.Default {
				names = append(names, v.ID)
			}
		case p.mine(v.Name):
			names = append(names, v.ID)
		default:
			others = true
		}
	}
	switch {
	case p.project == project.Default && !others:
		return p.Manager.EmptyTrash(ctx, nil)
	case len(names) == 0:
		return manager.Emptied{}, nil
	}
	return p.Manager.EmptyTrash(ctx, names)
}

func (p inProject) Undo(ctx context.Context, name string) (string, error) {
	return p.Manager.Undo(ctx, p.full(name))
}

func (p inProject) ForgetUndo(ctx context.Context, name string) error {
	return p.Manager.ForgetUndo(ctx, p.full(name))
}
