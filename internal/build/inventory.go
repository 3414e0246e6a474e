// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hallmark-sc/hallmark"
)

// Inventory lists the programs of a platform, and the compiled code that they load.
// A build policy approves one by the digest of its encoding (SP 800-204D §5.1.1,
// task 1(b) and component 1).
type Inventory struct {
	APIVersion string             `json:"apiVersion"` // hallmark/v1
	Kind       string             `json:"kind"`       // ToolInventory
	Platform   string             `json:"platform"`   // for people: what was looked at
	Programs   []InventoryProgram `json:"programs"`   // by path, each once
	// Libraries are files of compiled code that are not executed themselves: shared
	// libraries, plug-ins, and what a linker puts into programs. An inventory without
	// this list is refused; one of a platform that has none has an empty list.
	Libraries []InventoryProgram `json:"libraries"` // by path, each once
}

// InventoryProgram is one program or library.
type InventoryProgram struct {
	Path   Raw             `json:"path"` // absolute, inside a sandbox, without links
	Digest hallmark.Digest `json:"digest"`
}

// maxInventory bounds an encoded inventory.
const maxInventory = 64 << 20

// Encode is the one form of an inventory: one program a line, so that two are
// easily compared.
func (i Inventory) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(i); err != nil {
		return nil, fmt.Errorf("encoding an inventory: %w", err)
	}
	return b.Bytes(), nil
}

// ParseInventory reads what Encode wrote, and nothing else.
func ParseInventory(name string, data []byte) (Inventory, error) {
	bad := func(format string, args ...any) (Inventory, error) {
		return Inventory{}, hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "reading inventory "+name+": "+format, args...), "hallmark policy tools --out FILE writes one")
	}
	if len(data) > maxInventory {
		return bad("%d bytes, more than %d", len(data), maxInventory)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var i Inventory
	if err := dec.Decode(&i); err != nil {
		return bad("%w", err)
	}
	if i.APIVersion != "hallmark/v1" || i.Kind != "ToolInventory" {
		return bad("apiVersion %.40q, kind %.40q: want hallmark/v1 ToolInventory", i.APIVersion, i.Kind)
	}
	if len(i.Programs) == 0 {
		return bad("programs: want at least one")
	}
	if i.Libraries == nil {
		return bad("libraries: there is no such list, so it pins programs alone")
	}
	for _, l := range []struct {
		field string
		list  []InventoryProgram
	}{{"programs", i.Programs}, {"libraries", i.Libraries}} {
		for n, p := range l.list {
			switch {
			case !strings.HasPrefix(string(p.Path), "/"):
				return bad("%s[%d].path: %.120q: want an absolute path", l.field, n, p.Path)
			case p.Digest.Check() != nil:
				return bad("%s[%d].digest: %.80q: want sha256:…", l.field, n, p.Digest)
			case n > 0 && l.list[n-1].Path >= p.Path:
				return bad("%s[%d].path: %.120q is out of order or stands twice", l.field, n, p.Path)
			}
		}
	}
	again, err := i.Encode()
	if err != nil {
		return bad("%w", err)
	}
	if !bytes.Equal(again, data) {
		return bad("not in the form that hallmark writes")
	}
	return i, nil
}
