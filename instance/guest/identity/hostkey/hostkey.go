// Package hostkey makes SSH host keys in the format of OpenSSH. It is apart from what
// asks for them because of what it brings into a program.
package hostkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"

	"golang.org/x/crypto/ssh"
)

// rsaBits is what ssh-keygen(1) makes.
const rsaBits = 3072

// Make makes a host key of a kind that sshd uses (ed25519, ecdsa, rsa), and its public
// half. Of others it makes none.
func Make(kind string) (private, public []byte, err error) {
	switch kind {
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return encode(key, err)
	case "ecdsa":
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return encode(key, err)
	case "rsa":
		key, err := rsa.GenerateKey(rand.Reader, rsaBits)
		return encode(key, err)
	}
	return nil, nil, nil
}

func encode(key crypto.Signer, err error) (private, public []byte, _ error) {
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, nil, err
	}
	half, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(half), nil
}
