package treecopy

import (
	"context"

	"brig/instance/fault"
)

// Pass reads what is told of a tree, and makes nothing of it. It is for who looks into a
// stream before using it.
func Pass(ctx context.Context, from Well) error {
	r := &receiver{ctx: ctx, from: from}
	inFile, depth := false, 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var rec record
		if err := r.next(&rec); err != nil {
			return err
		}
		switch {
		case inFile && rec.Op == opDone:
			inFile = false
		case inFile && rec.Op == opData:
			if rec.Size <= 0 || rec.Size > blockSize {
				return fault.New(fault.Invalid, "a file has a part of %d bytes", rec.Size)
			}
			if err := from.Full(r.buf[:rec.Size]); err != nil {
				return err
			}
		case inFile && rec.Op == opZero:
		case inFile || rec.Op == opData || rec.Op == opZero || rec.Op == opDone:
			return fault.New(fault.Invalid, "what is told of the files makes no sense: %q", rec.Op)
		case rec.Op == opFile || rec.Op == opPatch:
			inFile = true
		case rec.Op == opDir:
			if depth++; depth > maxDepth {
				return fault.New(fault.Invalid, "what is told of the files is too deep")
			}
		case rec.Op == opUp:
			if depth--; depth < 0 {
				return nil
			}
		}
	}
}
