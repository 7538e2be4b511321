package images

import "strings"

// isFingerprint tells whether s is a SHA-256 in small hex digits.
func isFingerprint(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return len(s) == 64
}

// IsFingerprint tells the same to sources.
func IsFingerprint(s string) bool { return isFingerprint(s) }

// isDigest tells whether s is sha256: and a fingerprint.
func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && isFingerprint(hex)
}

// IsTag tells whether s can be a tag in a registry, as the OCI distribution
// specification has it.
func IsTag(s string) bool {
	if rest, ok := strings.CutPrefix(s, "_"); ok {
		s = "0" + rest
	}
	return plain(s, "._-", 128)
}

// plain tells whether s is a letter or digit, followed by letters, digits and
// others, and at most so many bytes in all.
func plain(s, others string, most int) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
		case i > 0 && strings.IndexByte(others, c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= most
}
