package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

const launchExample = `  brig launch debian:bookworm web
  brig launch debian:bookworm db --vm -c limits.memory=2GiB --wait ready
  brig launch debian:bookworm/cloud app --user-data setup.yaml --ssh-key ~/.ssh/id_ed25519.pub
  brig launch docker:library/nginx:1.27 front
  brig launch oci:./build:latest job -e -- /bin/job --once`

// createOptions are the flags that say what to create.
type createOptions struct {
	vm          bool
	config      []string
	devices     []string
	profiles    []string
	noProfiles  bool
	description string
	ephemeral   bool
	noNetwork   bool
	empty       bool
	pool        string
	seed        seedOptions
}

func (o *createOptions) flags(s *session, cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.vm, "vm", false, "Make a virtual machine instead of a container")
	f.StringArrayVarP(&o.config, "config", "c", nil, "Set a configuration key: KEY=VALUE (may be repeated)")
	cmd.RegisterFlagCompletionFunc("config", s.completeConfig)
	f.StringArrayVarP(&o.devices, "device", "d", nil, "Add or change a device: NAME,KEY=VALUE,... (may be repeated)")
	f.StringArrayVarP(&o.profiles, "profile", "p", nil, "Apply this profile instead of the default one (may be repeated)")
	cmd.RegisterFlagCompletionFunc("profile", s.completeProfiles(0, -1))
	f.BoolVar(&o.noProfiles, "no-profiles", false, "Apply no profile at all")
	f.StringVar(&o.description, "description", "", "Describe the instance")
	f.BoolVarP(&o.ephemeral, "ephemeral", "e", false, "Delete the instance when it stops")
	f.StringVarP(&o.pool, "storage", "s", "", "Pool to keep it in (default \"default\")")
	cmd.RegisterFlagCompletionFunc("storage", s.completeStorage)
	o.seed.flags(cmd)
	f.BoolVar(&o.empty, "empty", false, "With --vm, begin with an empty disk instead of an image")
	f.BoolVar(&o.noNetwork, "no-network", false, "Give it no network interface")
}

// request makes of arguments and flags what the manager is asked for.
func (o *createOptions) request(cmd *cobra.Command, args []string) (manager.CreateRequest, error) {
	r := manager.CreateRequest{
		Type: instance.Container, Profiles: o.profiles, Description: o.description,
		Ephemeral: o.ephemeral, NoNetwork: o.noNetwork, Pool: o.pool,
	}
	if o.vm {
		r.Type = instance.VirtualMachine
	}
	if o.noProfiles {
		if len(o.profiles) > 0 {
			return r, fault.New(fault.Invalid, "--profile and --no-profiles exclude each other")
		}
		r.Profiles = []string{}
	}
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		args, r.Command = args[:dash], args[dash:]
	}
	var err error
	named := 1
	if r.Empty = o.empty; r.Empty {
		named = 0
		if len(args) > 1 {
			return r, fault.New(fault.Invalid, "an empty machine has no image: want only a name, not %q and %q", args[0], args[1])
		}
	} else if len(args) == 0 {
		return r, fault.New(fault.Invalid, "there is no image: want IMAGE [NAME], or --empty")
	} else {
		r.Image = args[0]
	}
	if r.Name, err = chosen(args, named); err != nil {
		return r, err
	}
	if r.Config, err = parseConfig(o.config); err != nil {
		return r, err
	}
	if err = o.seed.into(r.Config); err != nil {
		return r, err
	}
	r.Devices, err = parseDevices(o.devices)
	return r, err
}

// imageAndName wants an image and perhaps a name before --, anything behind it.
func imageAndName(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		args = args[:dash]
	}
	if empty, err := cmd.Flags().GetBool("empty"); err == nil && empty {
		return argsOf(0, 1)(cmd, args)
	}
	return argsOf(1, 2)(cmd, args)
}

func newLaunch(s *session) *cobra.Command {
	var o createOptions
	var w waitOptions
	cmd := &cobra.Command{
		Use:     "launch IMAGE [NAME] [-- COMMAND...]",
		Short:   "Create an instance from an image and start it",
		Long:    "Create an instance from an image and start it. Without a NAME one is made up and\nprinted. What follows -- replaces the command of an app image.",
		Example: launchExample,
		Args:    imageAndName,
		RunE: func(cmd *cobra.Command, args []string) error {
			start, err := w.start()
			if err != nil {
				return err
			}
			return s.create(cmd, args, o, "Launching", func(ctx context.Context, m Manager, r manager.CreateRequest) (*instance.Spec, error) {
				spec, err := m.Launch(ctx, r, start)
				if err == nil {
					s.say("Launched %s", launched(spec))
				}
				return spec, err
			})
		},
		ValidArgsFunction: s.completeImageThenNothing,
	}
	o.flags(s, cmd)
	w.flags(cmd)
	return cmd
}

func newCreate(s *session) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use:     "create IMAGE [NAME] [-- COMMAND...]",
		Aliases: []string{"init"},
		Short:   "Create an instance from an image",
		Long: `Create an instance from an image, without starting it. Without a NAME one is made
up and printed. What follows -- replaces the command of an app image.

With --empty --vm it is a machine with an empty disk (-d root,size=20GiB), for a system
that is installed from a disc: see brig storage volume import --help.`,
		Example: "  brig create debian:bookworm web\n  brig create --empty --vm win -d root,size=40GiB -c limits.memory=4GiB",
		Args:    imageAndName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.create(cmd, args, o, "Creating", func(ctx context.Context, m Manager, r manager.CreateRequest) (*instance.Spec, error) {
				spec, err := m.Create(ctx, r)
				if err == nil {
					s.say("Created %s (%s)", project.Short(spec.Name), spec.Type)
				}
				return spec, err
			})
		},
		ValidArgsFunction: s.completeImageThenNothing,
	}
	o.flags(s, cmd)
	return cmd
}

func (s *session) create(cmd *cobra.Command, args []string, o createOptions, doing string,
	do func(context.Context, Manager, manager.CreateRequest) (*instance.Spec, error)) error {
	r, err := o.request(cmd, args)
	if err != nil {
		return err
	}
	m, err := s.manager()
	if err != nil {
		return err
	}
	s.say("%s", strings.TrimSpace(doing+" "+r.Name))
	spec, err := do(cmd.Context(), m, r)
	if err != nil {
		return err
	}
	if r.Name == "" {
		// Only brig knows it, and a script will want it.
		s.progress.Close()
		_, err = fmt.Fprintln(s.Stdout, project.Short(spec.Name))
	}
	return err
}

// launched says what there is now and how to reach it.
func launched(spec *instance.Spec) string {
	text := fmt.Sprintf("%s (%s)", project.Short(spec.Name), spec.Type)
	if spec.Address.IsValid() {
		text += " at " + spec.Address.Addr().String()
	}
	return text
}

// parseConfig understands KEY=VALUE of -c.
func parseConfig(list []string) (map[string]string, error) {
	config := map[string]string{}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, fault.New(fault.Invalid, "cannot use the configuration %q: want KEY=VALUE, for example limits.memory=1GiB", s)
		}
		if _, twice := config[key]; twice {
			return nil, fault.New(fault.Invalid, "the configuration key %q is given twice", key)
		}
		config[key] = value
	}
	return config, nil
}

// parseDevices understands NAME,KEY=VALUE,... of -d. A name that comes again
// gets more keys.
func parseDevices(list []string) (map[string]map[string]string, error) {
	devices := map[string]map[string]string{}
	for _, s := range list {
		name, rest, ok := strings.Cut(s, ",")
		if !ok || name == "" || strings.Contains(name, "=") {
			return nil, fault.New(fault.Invalid, "cannot use the device %q: want NAME,KEY=VALUE,..., for example root,size=20GiB", s)
		}
		if devices[name] == nil {
			devices[name] = map[string]string{}
		}
		for pair := range strings.SplitSeq(rest, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return nil, fault.New(fault.Invalid, "cannot use %q in the device %q: want KEY=VALUE", pair, name)
			}
			devices[name][key] = value
		}
	}
	return devices, nil
}
