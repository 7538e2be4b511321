package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"brig/instance/manager"
)

func newKernel(s *session) *cobra.Command {
	return newGroup("kernel", "Manage the kernels that virtual machines boot", newKernelList(s), newKernelImport(s))
}

func newKernelList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the kernels on this host that virtual machines can boot",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			list, err := m.Kernels(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "VERSION", "SOURCE", "DEFAULT", "SIZE", "CREATED AT"}}
			for _, k := range list {
				t.add(k.Name, k.Version, k.Source, yesNo(k.Default), sizeText(k.Size), timeText(k.Created))
			}
			return s.print(f, t, append([]manager.KernelInfo{}, list...))
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newKernelImport(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "import [SOURCE]",
		Short: "Take over a kernel for virtual machines",
		Long: `Take over a kernel for virtual machines: a vmlinuz file of this host, with its
modules in /lib/modules, or the name of a Debian package with a kernel. Without a
SOURCE it is Debian's kernel for cloud machines.`,
		Example: "  brig kernel import /boot/vmlinuz-6.1.0-32-amd64\n  brig kernel import linux-image-cloud-amd64",
		Args:    argsOf(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			k, err := m.ImportKernel(cmd.Context(), at(args, 0))
			if err != nil {
				return err
			}
			s.say("Imported the kernel %s (%s)", k.Name, k.Version)
			_, err = fmt.Fprintln(s.Stdout, k.Name)
			return err
		},
	}
}
