package cli

import (
	"context"
	"io"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/events"
	"brig/instance/manager"
	"brig/instance/project"
	"brig/instance/store"
	"brig/profiles"
	"brig/storage"
)

// Manager is what commands ask for work. *manager.Manager is the real one.
type Manager interface {
	Create(ctx context.Context, r manager.CreateRequest) (*instance.Spec, error)
	Launch(ctx context.Context, r manager.CreateRequest, o manager.StartOptions) (*instance.Spec, error)
	Copy(ctx context.Context, r manager.CopyRequest) (*instance.Spec, error)
	Rename(ctx context.Context, name, to string) error
	Move(ctx context.Context, r manager.MoveRequest) error
	Rebuild(ctx context.Context, name, image string) error
	ExportInstance(ctx context.Context, r manager.BackupRequest, to io.Writer) error
	ImportInstance(ctx context.Context, r manager.BackupSource, from io.Reader) (*instance.Spec, error)
	Delete(ctx context.Context, name string, o manager.DeleteOptions) error

	Start(ctx context.Context, name string, o manager.StartOptions) error
	Stop(ctx context.Context, name string, o manager.StopOptions) error
	Restart(ctx context.Context, name string, o manager.StopOptions) error
	Pause(ctx context.Context, name string) error
	Resume(ctx context.Context, name string) error

	List(ctx context.Context) ([]manager.View, error)
	Get(ctx context.Context, name string, o manager.GetOptions) (*manager.View, error)
	Samples(ctx context.Context) ([]manager.Sample, error)

	Exec(ctx context.Context, name string, c instance.Command) (int, error)
	Console(ctx context.Context, name string, o instance.ConsoleOptions) error
	ConsoleLog(ctx context.Context, name string, w io.Writer) error

	CreateSnapshot(ctx context.Context, name, snapshot string, r manager.SnapshotRequest) (string, error)
	Snapshots(ctx context.Context, name string) ([]instance.Snapshot, error)
	RestoreSnapshot(ctx context.Context, name, snapshot string, o manager.RestoreOptions) error
	DeleteSnapshot(ctx context.Context, name, snapshot string) error
	RenameSnapshot(ctx context.Context, name, snapshot, to string) error
	Diff(ctx context.Context, r manager.DiffRequest, each func(manager.Change) error) error
	MountSnapshot(ctx context.Context, name, snapshot, target string) error
	UnmountSnapshot(ctx context.Context, target string) error
	PullFile(ctx context.Context, r manager.FileRequest) error
	PushFiles(ctx context.Context, r manager.PushRequest) error
	MountFiles(ctx context.Context, r manager.FileMountRequest, ready func()) error
	ListFiles(ctx context.Context, name, path string) ([]manager.FileInfo, error)
	DeleteFile(ctx context.Context, r manager.RemoveRequest) error
	MakeDirectory(ctx context.Context, r manager.DirectoryRequest) error

	Trash(ctx context.Context, o manager.GetOptions) ([]manager.TrashView, error)
	RestoreTrash(ctx context.Context, nameOrID, as string) (name string, err error)
	EmptyTrash(ctx context.Context, namesOrIDs []string) (manager.Emptied, error)
	Undo(ctx context.Context, name string) (string, error)
	ForgetUndo(ctx context.Context, name string) error

	PullImage(ctx context.Context, ref string, o manager.PullOptions) (*images.Image, error)
	ImportImage(ctx context.Context, path string, o manager.ImportOptions) (*images.Image, error)
	SearchImages(ctx context.Context, query, architecture string) ([]images.Image, error)
	Images(ctx context.Context) ([]images.Image, error)
	Image(ctx context.Context, nameOrFingerprint string) (*images.Image, error)
	VerifyImage(ctx context.Context, r manager.VerifyRequest) (*manager.VerifyReport, error)
	DiffImages(ctx context.Context, a, b string, each func(manager.Change) error) error
	ImageHistory(ctx context.Context, nameOrFingerprint string) ([]manager.HistoryEntry, error)
	DeleteImage(ctx context.Context, nameOrFingerprint string) error
	SetImage(ctx context.Context, name string, c manager.ImageChange) error
	AliasImage(ctx context.Context, alias, name string) error
	RenameImageAlias(ctx context.Context, old, alias string) error
	DeleteImageAlias(ctx context.Context, alias string) error
	RefreshImage(ctx context.Context, name string) (manager.Refreshed, error)
	PruneImages(ctx context.Context, o manager.PruneOptions) ([]manager.Pruned, error)
	CareForImages(ctx context.Context) error
	ExportImage(ctx context.Context, name, to string) (digest string, err error)
	ExportFiles(ctx context.Context, r manager.ExportRequest) (paths []string, err error)
	Publish(ctx context.Context, r manager.PublishRequest) (*images.Image, error)

	Configure(ctx context.Context, name string, c manager.ConfigChange) (later []string, err error)
	Settings(ctx context.Context, name string) (manager.Settings, error)
	Change(ctx context.Context, name string, edit func(*manager.Settings) error) (later []string, err error)

	Projects(ctx context.Context) ([]manager.ProjectView, error)
	Project(ctx context.Context, name string) (*manager.ProjectView, error)
	HasProject(name string) error
	CreateProject(ctx context.Context, p project.Project) error
	ChangeProject(ctx context.Context, name string, edit func(*project.Project) error) error
	RenameProject(ctx context.Context, name, to string) error
	DeleteProject(ctx context.Context, name string) error

	Profiles(ctx context.Context, in string) ([]manager.ProfileView, error)
	Profile(ctx context.Context, name string) (*manager.ProfileView, error)
	ProfileIn(in, profile string) (full string)
	CreateProfile(ctx context.Context, p profiles.Profile) ([]manager.PendingView, error)
	ChangeProfile(ctx context.Context, name string, edit func(*profiles.Profile) error) ([]manager.PendingView, error)
	CopyProfile(ctx context.Context, name, to string) error
	RenameProfile(ctx context.Context, name, to string) error
	DeleteProfile(ctx context.Context, name string) error

	Wait(ctx context.Context, name, state string) error
	Listen(ctx context.Context, ready func(), each func(events.Event) error) error

	Boot(ctx context.Context, told manager.Told) error
	Shutdown(ctx context.Context, limit time.Duration, told manager.Told) error
	Again(ctx context.Context, id, name string) error

	Doctor(ctx context.Context, fix bool) ([]manager.Finding, error)
	Why(ctx context.Context, name string) (*manager.Explanation, error)
	Debug(ctx context.Context, name string, o manager.DebugOptions, w io.Writer) error

	Sweep(ctx context.Context) error
	Tick(ctx context.Context) error

	Pools(ctx context.Context) ([]manager.PoolView, error)
	Pool(ctx context.Context, name string) (*manager.PoolView, error)
	Space(ctx context.Context, names []string) (*manager.SpaceView, error)
	SpaceIn(ctx context.Context, pool string) (*manager.SpaceView, error)
	CreatePool(ctx context.Context, r storage.Record) error
	DeletePool(ctx context.Context, name string) error
	AdoptPool(ctx context.Context, r storage.Record) error
	RecoverPool(ctx context.Context, r storage.Record) (storage.Record, error)
	ForgetPool(ctx context.Context, name string) error
	SetPool(ctx context.Context, name string, set map[string]string) error

	ImportVolume(ctx context.Context, r manager.ImportVolumeRequest) error
	CreateVolume(ctx context.Context, r manager.VolumeRequest) error
	Volumes(ctx context.Context, pool string, o manager.GetOptions) ([]manager.VolumeView, error)
	Volume(ctx context.Context, pool, name string, o manager.GetOptions) (*manager.VolumeView, error)
	ConfigureVolume(ctx context.Context, pool, name string, c manager.ConfigChange) error
	CopyVolume(ctx context.Context, r manager.VolumeCopyRequest) error
	MoveVolume(ctx context.Context, r manager.VolumeCopyRequest) error
	RenameVolume(ctx context.Context, pool, name, to string) error
	DeleteVolume(ctx context.Context, pool, name string, o manager.VolumeDeleteOptions) error
	CreateVolumeSnapshot(ctx context.Context, pool, name, snapshot string, r manager.SnapshotRequest) (string, error)
	RestoreVolumeSnapshot(ctx context.Context, pool, name, snapshot string, o manager.VolumeRestoreOptions) error
	UndoVolume(ctx context.Context, pool, name string, o manager.VolumeRestoreOptions) (string, error)
	ForgetVolumeUndo(ctx context.Context, pool, name string) error
	RenameVolumeSnapshot(ctx context.Context, pool, name, snapshot, to string) error
	DeleteVolumeSnapshot(ctx context.Context, pool, name, snapshot string) error

	AttachVolume(ctx context.Context, r manager.AttachRequest) (later bool, err error)
	DetachVolume(ctx context.Context, r manager.AttachRequest) error
	AddDevice(ctx context.Context, r manager.DeviceRequest) (later bool, err error)
	RemoveDevice(ctx context.Context, name, device string) error

	Kernels(ctx context.Context) ([]manager.KernelInfo, error)
	ImportKernel(ctx context.Context, source string) (manager.KernelInfo, error)
}

// Options are what a Manager is composed with.
type Options struct {
	Dirs       store.Dirs
	BrigDir    string // absolute value of BRIG_DIR; empty: the default folders
	Failpoints string // for tests, as manager.ParseFailpoints reads them
	Progress   images.Progress
	Notice     func(text string) // something the user should know, one line
}
