// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark/internal/access"
)

// TestDocumentedRoles: docs/serve.md lists every role with exactly what it allows.
func TestDocumentedRoles(t *testing.T) {
	b, err := os.ReadFile("../../docs/serve.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range access.Roles() {
		var list []string
		for _, p := range r.Permissions {
			list = append(list, "`"+string(p)+"`")
		}
		if row := fmt.Sprintf("| `%s` | %s |\n", r.Role, strings.Join(list, ", ")); !strings.Contains(string(b), row) {
			t.Errorf("docs/serve.md lacks the row\n%s", row)
		}
	}
}
