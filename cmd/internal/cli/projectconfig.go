package cli

import (
	"context"
	"io"

	"brig/images"
	"brig/instance/manager"
	"brig/instance/project"
	"brig/profiles"
)

// What follows is of inProject, too: configuration and profiles.

func (p inProject) Publish(ctx context.Context, r manager.PublishRequest) (*images.Image, error) {
	r.Name = p.full(r.Name)
	return p.Manager.Publish(ctx, r)
}

func (p inProject) Configure(ctx context.Context, name string, c manager.ConfigChange) ([]string, error) {
	return p.Manager.Configure(ctx, p.full(name), c)
}

func (p inProject) Settings(ctx context.Context, name string) (manager.Settings, error) {
	return p.Manager.Settings(ctx, p.full(name))
}

func (p inProject) Change(ctx context.Context, name string, edit func(*manager.Settings) error) ([]string, error) {
	return p.Manager.Change(ctx, p.full(name), edit)
}

// profile gives the full name of a profile.
func (p inProject) profile(name string) string {
	if p.project == project.Default {
		return name
	}
	return p.ProfileIn(p.project, name)
}

func (p inProject) Profiles(ctx context.Context, _ string) ([]manager.ProfileView, error) {
	return p.Manager.Profiles(ctx, p.project)
}

func (p inProject) Profile(ctx context.Context, name string) (*manager.ProfileView, error) {
	return p.Manager.Profile(ctx, p.profile(name))
}

func (p inProject) CreateProfile(ctx context.Context, f profiles.Profile) ([]manager.PendingView, error) {
	f.Name = p.profile(f.Name)
	return p.Manager.CreateProfile(ctx, f)
}

func (p inProject) ChangeProfile(ctx context.Context, name string, edit func(*profiles.Profile) error) ([]manager.PendingView, error) {
	return p.Manager.ChangeProfile(ctx, p.profile(name), edit)
}

func (p inProject) CopyProfile(ctx context.Context, name, to string) error {
	return p.Manager.CopyProfile(ctx, p.profile(name), p.profile(to))
}

func (p inProject) RenameProfile(ctx context.Context, name, to string) error {
	return p.Manager.RenameProfile(ctx, p.profile(name), p.profile(to))
}

func (p inProject) DeleteProfile(ctx context.Context, name string) error {
	return p.Manager.DeleteProfile(ctx, p.profile(name))
}

func (p inProject) Wait(ctx context.Context, name, state string) error {
	return p.Manager.Wait(ctx, p.full(name), state)
}

func (p inProject) Why(ctx context.Context, name string) (*manager.Explanation, error) {
	return p.Manager.Why(ctx, p.full(name))
}

func (p inProject) Debug(ctx context.Context, name string, o manager.DebugOptions, w io.Writer) error {
	return p.Manager.Debug(ctx, p.full(name), o, w)
}

func (p inProject) Space(ctx context.Context, names []string) (*manager.SpaceView, error) {
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = p.full(name)
	}
	return p.Manager.Space(ctx, full)
}

func (p inProject) AttachVolume(ctx context.Context, r manager.AttachRequest) (bool, error) {
	r.Instance = p.full(r.Instance)
	return p.Manager.AttachVolume(ctx, r)
}

func (p inProject) DetachVolume(ctx context.Context, r manager.AttachRequest) error {
	r.Instance = p.full(r.Instance)
	return p.Manager.DetachVolume(ctx, r)
}

func (p inProject) AddDevice(ctx context.Context, r manager.DeviceRequest) (bool, error) {
	r.Instance = p.full(r.Instance)
	return p.Manager.AddDevice(ctx, r)
}

func (p inProject) RemoveDevice(ctx context.Context, name, device string) error {
	return p.Manager.RemoveDevice(ctx, p.full(name), device)
}
