// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// MachineCode names the kind of compiled code that a file holds, by what it
// holds and never by its name; "" when it is none that is known.
//
// ELF is looked for anywhere in the file, so that one behind a script or a
// picture is found as well; the other kinds where a loader looks for them.
func MachineCode(data []byte) string {
	for rest := data; ; {
		i := bytes.Index(rest, []byte("\x7fELF"))
		if i < 0 {
			break
		}
		rest = rest[i+4:]
		// Class, byte order and version, as every loader wants them.
		if len(rest) >= 3 && (rest[0] == 1 || rest[0] == 2) && (rest[1] == 1 || rest[1] == 2) && rest[2] == 1 {
			return "ELF"
		}
	}
	for _, m := range []struct{ magic, kind string }{
		{"\xfe\xed\xfa\xce", "Mach-O"}, {"\xfe\xed\xfa\xcf", "Mach-O"}, {"\xce\xfa\xed\xfe", "Mach-O"}, {"\xcf\xfa\xed\xfe", "Mach-O"},
		{"\xca\xfe\xba\xbe", "Java class or Mach-O"}, {"\xca\xfe\xba\xbf", "Mach-O"},
		{"\x00asm", "WebAssembly"}, {"!<arch>\n", "archive of object files"}, {"!<thin>\n", "archive of object files"},
		{"BC\xc0\xde", "LLVM bitcode"}, {"dex\n0", "Dalvik"}, {"\x1bLua", "Lua bytecode"},
	} {
		if bytes.HasPrefix(data, []byte(m.magic)) {
			return m.kind
		}
	}
	switch {
	case bytes.HasPrefix(data, []byte("MZ")) && bytes.IndexByte(data[:min(64, len(data))], 0) >= 0:
		return "PE"
	case pyc(data):
		return "Python bytecode"
	case coff(data):
		return "COFF"
	}
	return ""
}

// pyc: a version number, carriage return and line feed, then flags and times,
// which no text has.
func pyc(data []byte) bool {
	if len(data) < 16 || data[2] != '\r' || data[3] != '\n' || bytes.IndexByte(data[4:16], 0) < 0 {
		return false
	}
	n := binary.LittleEndian.Uint16(data)
	return n >= 3000 && n < 4200 || n >= 20000
}

// coff: an object file, which has no magic but its machine and a header without
// the part that only executables have.
func coff(data []byte) bool {
	if len(data) < 20 {
		return false
	}
	switch binary.LittleEndian.Uint16(data) {
	case 0x14c, 0x1c4, 0x8664, 0xaa64:
	default:
		return false
	}
	sections, symbols := binary.LittleEndian.Uint16(data[2:]), binary.LittleEndian.Uint32(data[8:])
	return sections > 0 && sections < 97 && binary.LittleEndian.Uint16(data[16:]) == 0 && uint64(symbols) <= uint64(len(data))
}

// binaries returns why the tree is refused for the compiled code that it holds;
// nil when there is none but what was approved.
func binaries(ctx context.Context, cfg Config, tree string) (*hallmark.Reason, error) {
	var found, digests []string
	err := cfg.Files(ctx, tree, func(path string, data []byte) error {
		kind := MachineCode(data)
		if kind == "" {
			return nil
		}
		d := hallmark.DigestOf(data)
		if !slices.Contains(cfg.Binaries, d) {
			found = append(found, fmt.Sprintf("%q (%s, %s)", path, kind, d))
			digests = append(digests, string(d))
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	slices.Sort(found)
	const shown = 5
	more := ""
	if len(found) > shown {
		more = fmt.Sprintf(" and %d more", len(found)-shown)
	}
	slices.Sort(digests)
	digests = slices.Compact(digests)
	approve := strings.Join(digests[:min(shown, len(digests))], ",")
	return &hallmark.Reason{
		Code: hallmark.CodeSourceBinary, Check: "source",
		Message: "compiled code that nobody can review is in the tree: " + strings.Join(found[:min(shown, len(found))], ", ") + more,
		Fix:     "remove it and let the build make it; or, when its origin is known, have an administrator approve these bytes beside those that are: hallmark policy set source.binaries=" + approve,
	}, nil
}
