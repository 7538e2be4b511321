package memory_test

import (
	"sync"
	"testing"

	"brig/storage"
	"brig/storage/storagetest"
	"brig/storage/storagetest/memory"
)

// pools are those of this program by the place of their files: opening one again
// gives the same.
type pools struct {
	mu     sync.Mutex // guards places
	places map[string]*memory.Pool
}

func (p *pools) open(place string, _ func(string)) (storage.Pool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pool, ok := p.places[place]; ok {
		return pool, nil
	}
	pool, err := memory.New(place)
	if err != nil {
		return nil, err
	}
	p.places[place] = pool
	return pool, nil
}

func driver() storagetest.Driver {
	all := &pools{places: map[string]*memory.Pool{}}
	return storagetest.Driver{
		Name:         "memory",
		Content:      storage.Tree,
		Capabilities: storage.Capabilities{Contents: []storage.Content{storage.Tree}},
		Volatile:     true,
		Open:         all.open,
	}
}

func TestMain(m *testing.M) { storagetest.Main(m, driver()) }

// TestMemory needs root, which mounts its trees.
func TestMemory(t *testing.T) { storagetest.Run(t, driver()) }
