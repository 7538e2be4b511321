package manager

import (
	"context"
)

// Kernels lists the kernels for virtual machines.
func (m *Manager) Kernels(ctx context.Context) ([]KernelInfo, error) {
	return m.cfg.Kernels.List(ctx)
}

// ImportKernel takes a kernel from a package, a folder or an image.
func (m *Manager) ImportKernel(ctx context.Context, source string) (KernelInfo, error) {
	return m.cfg.Kernels.Import(ctx, source, m.cfg.Progress)
}
