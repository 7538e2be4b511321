package manager

import "time"

// KernelInfo is a line of kernel list.
type KernelInfo struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Source  string    `json:"source"` // host, package or file it came from
	Default bool      `json:"default"`
	Size    int64     `json:"size"` // bytes
	Created time.Time `json:"created_at"`
}
