package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

const rootLong = `brig keeps long-lived machines on this host, each a system container or a
virtual machine, behind the same commands. There is no daemon and nothing to
set up:

  brig launch debian:bookworm web
  brig shell web

State is in /var/lib/brig; BRIG_DIR=FOLDER keeps state, run files and logs below
another folder, apart from all others.

Exit codes: 0 fine, 1 internal error, 2 wrong usage or input, 3 not found,
4 exists, busy or in the wrong state, 5 forbidden, 6 unsupported here, 7 out of
space or other resources, 8 unavailable, 124 timeout, 130 interrupted. exec and
shell give the command's own code, and 125 when brig itself failed.`

func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:           "brig",
		Short:         "Keep long-lived containers and virtual machines",
		Long:          rootLong,
		Args:          noSuchCommand,
		RunE:          help,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			s.started = true
			s.progress.quiet = s.quiet
		},
	}
	root.PersistentFlags().BoolVarP(&s.quiet, "quiet", "q", false, "Show no progress and no messages but errors")
	root.PersistentFlags().StringVar(&s.project, "project", "", "Project to work in (default: BRIG_PROJECT, or what brig project switch chose)")
	root.RegisterFlagCompletionFunc("project", s.completeProjects(-1))
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddGroup(
		&cobra.Group{ID: "life", Title: "Instances:"},
		&cobra.Group{ID: "use", Title: "Working in instances:"},
		&cobra.Group{ID: "more", Title: "Images and the rest:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("life", newLaunch(s), newCreate(s), newList(s), newInfo(s), newTop(s), newStart(s), newStop(s), newRestart(s),
		newPause(s), newResume(s), newCopy(s), newMove(s), newRename(s), newExport(s), newImport(s), newRebuild(s), newConfig(s), newProfile(s), newProject(s), newSnapshot(s), newDelete(s), newWait(s), newMonitor(s), newUndo(s), newTrash(s))
	add("use", newExec(s), newShell(s), newConsole(s), newFile(s))
	add("more", newImage(s), newPublish(s), newRemote(s), newKernel(s), newStorage(s), newDF(s), newBoot(s), newShutdown(s), newTick(s), newDoctor(s), newWhy(s), newDebug(s), newRecover(s), newCompletion(s), newVersion(s))
	root.AddCommand(newSweep(s), newAgain(s))
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		addExamples(root) // which nothing but help needs
		help(cmd, args)
	})
	root.SetHelpCommandGroupID("more")
	return root
}

// newGroup makes a command that only holds others.
func newGroup(use, short string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noSuchCommand, RunE: help}
	c.AddCommand(cmds...)
	return c
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// noSuchCommand refuses what is not one of a group's commands.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if here, ok := elsewhere[cmd.CommandPath()+" "+args[0]]; ok {
		hint = "; here it is " + here
	} else if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", near[0])
	} else if here, ok := elsewhere[cmd.CommandPath()]; ok {
		hint = "; did you mean " + here + "?"
	}
	return fault.New(fault.Invalid, "unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
}

// elsewhere has the words of LXD, Incus, Docker, libvirt and iocage for what is called
// something else here. A group alone stands for what its first argument is elsewhere.
var elsewhere = map[string]string{
	"brig snapshot":   "brig snapshot create NAME [SNAPSHOT]",
	"brig attach":     "brig console",
	"brig clone":      "brig copy",
	"brig define":     "brig create",
	"brig destroy":    "brig delete",
	"brig domblklist": "brig config device show",
	"brig edit":       "brig config edit",
	"brig get":        "brig config get",
	"brig images":     "brig image list",
	"brig inspect":    "brig info",
	"brig kill":       "brig stop --force",
	"brig logs":       "brig console --show-log",
	"brig network":    "a nic device: brig config device add NAME eth0 nic",
	"brig ps":         "brig list",
	"brig pull":       "brig image pull",
	"brig push":       "brig image push",
	"brig query":      "brig list -f json",
	"brig restore":    "brig snapshot restore NAME SNAPSHOT",
	"brig rmi":        "brig image delete",
	"brig rollback":   "brig snapshot restore NAME SNAPSHOT",
	"brig run":        "brig launch",
	"brig search":     "brig image search",
	"brig set":        "brig config set",
	"brig shut":       "brig stop",
	"brig stats":      "brig top",
	"brig suspend":    "brig pause",
	"brig unpause":    "brig resume",
	"brig update":     "brig image refresh",
	"brig volume":     "brig storage volume",
}

// argsOf checks the number of arguments against what the usage line says.
// A negative most means any number.
func argsOf(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want := strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath()+" ")
		switch {
		case len(args) < least:
			return fault.New(fault.Invalid, "%q needs more arguments: want %s %s", cmd.CommandPath(), cmd.CommandPath(), want)
		case most >= 0 && len(args) > most:
			return fault.New(fault.Invalid, "%q got %q too much: want %s %s", cmd.CommandPath(), args[most], cmd.CommandPath(), want)
		}
		return nil
	}
}
