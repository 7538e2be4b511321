package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"brig/images"
	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/project"
	"brig/instance/store"
	"brig/profiles"
	"brig/storage"
)

// createArgs are all that is needed to make an instance or to unmake it.
type createArgs struct {
	Spec *instance.Spec
	Pool string // of From and of the new volume
	From storage.Source

	Empty int64 // bytes of an empty disk instead of From

	Held map[string]string // instances that stand still for it, name to id
}

// launchArgs are the arguments of a create and start in one.
type launchArgs struct {
	Create createArgs
	Start  startArgs
}

// Create makes a stopped instance from an image, fetching the image if it is
// not here yet.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (*instance.Spec, error) {
	return m.create(ctx, r, false, nil)
}

// Launch is Create and Start in one: on an error nothing of the instance stays.
func (m *Manager) Launch(ctx context.Context, r CreateRequest, o StartOptions) (*instance.Spec, error) {
	spec, err := m.create(ctx, r, true, nil)
	if err != nil {
		return nil, err
	}
	return spec, m.waitStarted(ctx, spec.Name, o)
}

// create makes an instance. Edit, which may be nil, has a last word on its spec.
func (m *Manager) create(ctx context.Context, r CreateRequest, start bool, edit func(*instance.Spec)) (*instance.Spec, error) {
	doing := "create"
	if start {
		doing = "launch"
	}
	spec, err := newSpec(r)
	if err != nil {
		return nil, err
	}
	if err := m.withProfiles(spec); err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	if err := m.wouldAdmit(ctx, spec); err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	driver, err := m.driver(spec.Type)
	if err != nil {
		return nil, err
	}
	// What cannot work is refused before an image is fetched for it. A name may
	// be taken only by what a killed command left.
	m.tidy(ctx)
	if err := m.nameWillBeFree(ctx, doing, spec.Name); err != nil {
		return nil, err
	}
	if err := driver.Check(ctx); err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	if value := spec.Effective.Config["boot.depends"]; value != "" {
		if err := m.checkDepends(ctx, spec.Name, value); err != nil {
			return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
		}
	}
	if err := m.checkDevices(ctx, spec); err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	args, err := m.contentOf(ctx, spec, r)
	if err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	if edit != nil {
		edit(spec)
	}
	if note := m.seedNote(ctx, spec); note != "" {
		m.cfg.Notice(spec.Name + ": " + note + ".")
	}
	admitted, err := m.admitNew(ctx, doing, spec.Name)
	if err != nil {
		return nil, err
	}
	defer admitted.release()
	held, err := m.lock(ctx, doing, spec.Name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	if err := m.nameIsFree(ctx, spec.Name); err != nil {
		return nil, err
	}
	if err := m.withProfiles(spec); err != nil { // which may be others by now
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	if err := admitted.check(ctx, spec); err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	locked, err := m.lockVolumesOf(ctx, doing, spec)
	if err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	defer locked.Release()
	if start {
		var drop func()
		ctx, drop = keeper.Ahead(ctx, m.cfg.Helpers.Keeper, m.cfg.Dirs.RunOf(spec.ID))
		defer drop()
	}
	err = m.withAddress(ctx, spec, r.NoNetwork, func() error {
		if start {
			a := launchArgs{args, startArgs{Name: spec.Name, ID: spec.ID}}
			return m.performAs(ctx, doing, []string{spec.Name}, a, admitted.until(m.launchOperation(a)))
		}
		return m.performAs(ctx, doing, []string{spec.Name}, args, admitted.until(m.createOperation(args)))
	})
	if err != nil {
		return nil, fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	if !r.Empty {
		if err := m.cfg.Images.Touch(spec.Image.Fingerprint, now()); err != nil {
			m.cfg.Notice(fmt.Sprintf("The image's time of last use was not recorded: %v", err))
		}
	}
	return spec, nil
}

// withProfiles completes a new spec by what its profiles say.
func (m *Manager) withProfiles(spec *instance.Spec) error {
	if err := m.hasProfiles(spec, spec.Applied); err != nil {
		return err
	}
	m.resolve(spec)
	if err := m.check(spec); err != nil {
		return err
	}
	return m.copyProfiles(spec)
}

// contentOf finds what a new instance is made of, an image that it fetches if need be,
// and notes in the spec what that says.
func (m *Manager) contentOf(ctx context.Context, spec *instance.Spec, r CreateRequest) (createArgs, error) {
	args := createArgs{Spec: spec, Pool: r.Pool}
	if r.Empty {
		return emptyMachine(args, r)
	}
	image, source, err := m.ensureImage(ctx, r.Image, spec.Type, r.Pool)
	if err != nil {
		return args, err
	}
	args.From = storage.Source{Key: source}
	describe(spec, image, r)
	return args, m.renewOfImage(ctx, spec, image)
}

// newSpec makes the part of a Spec that does not depend on the image.
func newSpec(r CreateRequest) (*instance.Spec, error) {
	id := newID()
	name := r.Name
	if name == "" {
		name = project.Full(r.Project, generatedName(id))
	}
	if err := store.CheckFullName(name); err != nil {
		return nil, err
	}
	t := r.Type
	if t == "" {
		t = instance.Container
	}
	if err := config.Check(t, r.Config); err != nil {
		return nil, fmt.Errorf("cannot create %q: %w", name, err)
	}
	if r.Profiles == nil {
		r.Profiles = []string{profiles.Default}
	}
	if r.Empty {
		var err error
		if r.Devices, err = checkEmpty(r); err != nil {
			return nil, fmt.Errorf("cannot create %q: %w", name, err)
		}
	}
	for device, keys := range r.Devices {
		if _, err := parseDevice(device, keys); err != nil {
			return nil, fmt.Errorf("cannot create %q: %w", name, err)
		}
	}
	return &instance.Spec{
		Version:     instance.SpecVersion,
		ID:          id,
		Name:        name,
		Type:        t,
		Description: r.Description,
		CreatedAt:   now(),
		Command:     r.Command,
		Config:      maps.Clone(r.Config),
		Devices:     devices(r.Devices),
		Profiles:    slices.Clone(r.Profiles),
		Ephemeral:   r.Ephemeral,
	}, nil
}

// devices gives a copy of what was asked for.
func devices(wanted map[string]map[string]string) map[string]map[string]string {
	all := map[string]map[string]string{}
	for name, keys := range wanted {
		all[name] = maps.Clone(keys)
	}
	return all
}

// describe fills in what the image says about the instance.
func describe(spec *instance.Spec, image *images.Image, r CreateRequest) {
	spec.Architecture = image.Architecture
	spec.Image = instance.Image{
		Fingerprint: image.Fingerprint,
		Reference:   r.Image,
		Description: image.Description,
		App:         image.App,
	}
	if image.Kind == images.Disk {
		spec.Image.Firmware = image.Properties[images.FirmwareProperty]
	} else if image.App == nil {
		spec.Image.Init, spec.Image.Env = initOf(image)
	}
	if spec.Config == nil {
		spec.Config = map[string]string{}
	}
}

// initOf gives the command line and environment of a system image's init: an
// OCI image may name an init of its own.
func initOf(image *images.Image) (init, env []string) {
	var oci struct {
		Config struct{ Entrypoint, Cmd, Env []string }
	}
	if len(image.Config) > 0 && json.Unmarshal(image.Config, &oci) == nil {
		return slices.Concat(oci.Config.Entrypoint, oci.Config.Cmd), oci.Config.Env
	}
	if path := image.Properties[images.InitProperty]; path != "" {
		return []string{path}, nil
	}
	return nil, nil
}

// nameWillBeFree is nameIsFree for a name that a killed command may still seem to work
// on: the kernel takes a moment to let go of its lock, if it was just starting another
// program. Then that is waited for, and what the command left is recovered.
func (m *Manager) nameWillBeFree(ctx context.Context, doing, name string) error {
	err := m.nameIsFree(ctx, name)
	if !fault.Is(err, fault.AlreadyExists) {
		return err
	}
	if concerned, _, e := m.concerning([]string{name}); e != nil || len(concerned) == 0 {
		return errors.Join(err, e)
	}
	held, err := m.lock(ctx, doing, name)
	if err != nil {
		return err
	}
	held.Release()
	return m.nameIsFree(ctx, name)
}

func (m *Manager) nameIsFree(ctx context.Context, name string) error {
	_, _, err := m.find(ctx, instanceKey(name))
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err == nil:
		return fault.New(fault.AlreadyExists, "cannot create %q: an instance with this name exists; choose another, or delete it with brig delete %s", name, name)
	}
	return err
}

func (m *Manager) createOperation(a createArgs) *operation { return m.cloneOperation(a, nil) }

// cloneOperation is createOperation from a volume that may be in use.
func (m *Manager) cloneOperation(a createArgs, live *storage.Live) *operation {
	key := instanceKey(a.Spec.Name)
	clone := func(ctx context.Context) error {
		pool, err := m.pool(ctx, a.Pool)
		if err != nil {
			return err
		}
		if a.Empty > 0 {
			return makeEmpty(ctx, pool, key, a)
		}
		_, err = pool.Clone(ctx, a.From, key, storage.CloneOptions{
			Edit: func(dir *os.Root) error { return store.SaveSpec(dir, a.Spec) },
			Live: live,
		})
		return err
	}
	return &operation{steps: []step{{
		name: "volume",
		do: func(ctx context.Context) error {
			// Both wait for the disk, which takes no longer for two.
			claimed := make(chan error, 1)
			go func() { claimed <- m.claimAddress(a.Spec) }()
			err := clone(ctx)
			if err = errors.Join(err, <-claimed); err != nil {
				return err
			}
			return m.freshenProfiles(ctx, a.Spec)
		},
		undo: func(ctx context.Context) error {
			if err := m.dropVolume(ctx, a.Pool, key, a.Spec.ID); err != nil {
				return err
			}
			return errors.Join(m.releaseAddress(a.Spec), m.letAllGo(ctx, a.Held))
		},
	}}}
}

func (m *Manager) launchOperation(a launchArgs) *operation {
	op := m.startOperation(a.Start)
	op.steps = append(m.createOperation(a.Create).steps, op.steps...)
	// A launch that is undone takes the logs of its instance with it.
	undo := op.steps[0].undo
	op.steps[0].undo = func(ctx context.Context) error {
		if err := m.dropFiles(a.Start.ID); err != nil {
			return err
		}
		return undo(ctx)
	}
	return op
}

// dropVolume deletes the volume of an instance if it is the one with this id.
func (m *Manager) dropVolume(ctx context.Context, in string, key storage.Key, id string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	volume, err := pool.Open(ctx, key)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if spec, err := readSpec(volume, key.Name); err == nil && spec.ID != id {
		return nil
	}
	if err := pool.Delete(ctx, key); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// dropFiles removes the run and log folders of an instance that is gone, what its
// schedule remembers, and that it was meant to run.
func (m *Manager) dropFiles(id string) error {
	for _, dir := range []string{m.cfg.Dirs.RunOf(id), m.cfg.Dirs.LogOf(id), m.memoryPath(id), m.expiriesPath(id)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("cannot remove the files of an instance: %w", err)
		}
	}
	m.dropAgain(id)
	return m.cfg.Dirs.Power().Clear(id)
}

// generatedName makes a name from an id: two words, with a digit group of the
// id behind them against collisions.
func generatedName(id string) string {
	pick := func(list []string, hex string) string {
		var n int
		fmt.Sscanf(hex, "%x", &n)
		return list[n%len(list)]
	}
	return pick(adjectives, id[:4]) + "-" + pick(animals, id[4:8]) + "-" + id[8:12]
}

var (
	adjectives = []string{"able", "bold", "brave", "calm", "clever", "eager", "fair", "gentle", "happy", "keen", "kind", "lively", "lucky", "merry", "noble", "proud", "quick", "quiet", "sharp", "smart", "steady", "strong", "sunny", "swift", "wise", "witty"}
	animals    = []string{"badger", "bear", "beaver", "bison", "cat", "crane", "crow", "deer", "dog", "dove", "eagle", "falcon", "ferret", "fox", "goose", "hare", "hawk", "heron", "horse", "lynx", "marten", "mole", "otter", "owl", "puffin", "robin", "seal", "stoat", "swan", "wolf"}
)
