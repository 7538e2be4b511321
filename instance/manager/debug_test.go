package manager

import (
	"encoding/json"
	"strings"
	"testing"

	"brig/instance"
)

// TestHideMachineHidesTheSeed is about what cloud-init is told. It is in the machine as
// text of its own, however short.
func TestHideMachineHidesTheSeed(t *testing.T) {
	m := &instance.Machine{Boot: instance.Boot{Seed: &instance.Seed{
		ID: "1", UserData: "u+1", VendorData: "v+2", NetworkConfig: "n+3", Keys: []instance.SSHKey{{User: "ann", Key: "k+4"}},
	}}}
	secrets := strings.Join(hideMachine(m), " ")
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"u+1", "v+2", "n+3", "k+4"} {
		if strings.Contains(string(data), secret) {
			t.Errorf("the machine tells %q: %s", secret, data)
		}
		if !strings.Contains(secrets, secret) {
			t.Errorf("%q is none of the secrets %q", secret, secrets)
		}
	}
}
