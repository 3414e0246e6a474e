// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sqlstore

import (
	"fmt"

	"github.com/hallmark-sc/hallmark"
)

// SetVersion pretends that another version made the schema.
func SetVersion(s *Store, v int) error {
	_, err := s.db.Exec(fmt.Sprintf("PRAGMA user_version = %d", v))
	return err
}

// Subjects counts the subjects of a statement.
func Subjects(s *Store, d hallmark.Digest) (n int, err error) {
	err = s.db.QueryRow("SELECT count(*) FROM subject WHERE statement = ?", string(d)).Scan(&n)
	return n, err
}

// DropRuns makes an index as it was before there were runs.
func DropRuns(s *Store) error {
	_, err := s.db.Exec("DROP TABLE run; DROP TABLE run_event")
	return err
}
