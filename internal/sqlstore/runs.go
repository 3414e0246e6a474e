// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// runSchema is the queue of builds and what was said while they ran. Who holds
// which run stands here alone; that it has to be built is in the log.
const runSchema = `
CREATE TABLE IF NOT EXISTS run (
	id         TEXT PRIMARY KEY,
	repository TEXT NOT NULL,
	ref        TEXT NOT NULL,
	revision   TEXT NOT NULL,
	change     TEXT NOT NULL,
	cause      TEXT NOT NULL,
	basis      TEXT NOT NULL,
	principal  TEXT NOT NULL,
	parameters TEXT NOT NULL,
	state      TEXT NOT NULL,
	attempt    INTEGER NOT NULL,
	fence      INTEGER NOT NULL,
	worker     TEXT NOT NULL,
	leased     INTEGER NOT NULL,
	queued     INTEGER NOT NULL,
	started    INTEGER NOT NULL,
	finished   INTEGER NOT NULL,
	cancelled  INTEGER NOT NULL,
	effect     TEXT NOT NULL,
	code       TEXT NOT NULL,
	message    TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS run_state ON run (state, queued);
CREATE TABLE IF NOT EXISTS run_event (
	run     TEXT NOT NULL,
	n       INTEGER NOT NULL,
	message BLOB NOT NULL,
	PRIMARY KEY (run, n)
) WITHOUT ROWID;
`

// RunState is where a run stands.
type RunState string

// The states of a run. A leased run is somebody's, who has not begun; a failed one
// ended without a verdict, a lost one was begun too often by workers that died.
const (
	RunQueued  RunState = "queued"
	RunLeased  RunState = "leased"
	RunRunning RunState = "running"
	RunDone    RunState = "done"
	RunFailed  RunState = "failed"
	RunLost    RunState = "lost"
)

// RunStates are all of them.
func RunStates() []RunState {
	return []RunState{RunQueued, RunLeased, RunRunning, RunDone, RunFailed, RunLost}
}

// Ended reports whether nothing more happens to a run.
func (s RunState) Ended() bool { return s == RunDone || s == RunFailed || s == RunLost }

// Run is one build that was asked for.
type Run struct {
	ID, Repository, Ref, Revision string
	Change                        string // "" where it is of a reference
	Cause                         string
	Basis                         hallmark.Digest // statement that says it has to be
	Principal                     string
	Parameters                    map[string]string

	State     RunState
	Attempt   int   // how often it was leased
	Fence     int64 // grows with each lease: an older holder's word counts for nothing
	Worker    string
	LeasedTo  time.Time
	Queued    time.Time
	Started   time.Time
	Finished  time.Time
	Cancelled bool
	Effect    string // of the verdict; "" where there is none
	Code      string // why it ended without a verdict
	Message   string
}

// RunEnd is how a run ended.
type RunEnd struct {
	State                 RunState
	Effect, Code, Message string
}

const runColumns = "id, repository, ref, revision, change, cause, basis, principal, parameters, state, attempt, fence, worker, leased, queued, started, finished, cancelled, effect, code, message"

func scanRun(scan func(...any) error) (Run, error) {
	var r Run
	var parameters string
	var leased, queued, started, finished int64
	if err := scan(&r.ID, &r.Repository, &r.Ref, &r.Revision, &r.Change, &r.Cause, &r.Basis, &r.Principal, &parameters, &r.State, &r.Attempt, &r.Fence, &r.Worker, &leased, &queued, &started, &finished, &r.Cancelled, &r.Effect, &r.Code, &r.Message); err != nil {
		return r, err
	}
	for n, to := range map[*time.Time]int64{&r.LeasedTo: leased, &r.Queued: queued, &r.Started: started, &r.Finished: finished} {
		if to != 0 {
			*n = time.Unix(0, to).UTC()
		}
	}
	if err := json.Unmarshal([]byte(parameters), &r.Parameters); err != nil {
		return r, hallmark.Errorf(hallmark.KindInvalid, "the parameters of run %.40q can't be read: %w", r.ID, err)
	}
	return r, nil
}

// QueueRun adds a run, durable when it returns. One that is there already is left
// alone, but for a lost one, which gets another try. most is how many runs of the
// principal may wait; 0 counts nothing.
func (s *Store) QueueRun(ctx context.Context, r Run, most int) (added bool, err error) {
	parameters, err := json.Marshal(r.Parameters)
	if err != nil {
		return false, fmt.Errorf("queueing run %s: %w", r.ID, err)
	}
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		var state RunState
		err := tx.QueryRowContext(ctx, "SELECT state FROM run WHERE id = ?", r.ID).Scan(&state)
		switch {
		case err == nil && state != RunLost:
			return nil
		case err == nil:
			added = true
			_, err = tx.ExecContext(ctx, "UPDATE run SET state = ?, attempt = 0, fence = fence + 1, worker = '', leased = 0, finished = 0, code = '', message = '' WHERE id = ?", RunQueued, r.ID)
			return err
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		var waiting int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM run WHERE principal = ? AND state = ?", r.Principal, RunQueued).Scan(&waiting); err != nil {
			return err
		}
		if most > 0 && waiting >= most {
			return hallmark.WithHint(hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeRunQueueFull, "%d runs of %s wait already", waiting, r.Principal), "wait for them: hallmark runs list; or give them up: hallmark runs cancel ID")
		}
		added = true
		_, err = tx.ExecContext(ctx, "INSERT INTO run ("+runColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '', 0, ?, 0, 0, 0, '', '', '')",
			r.ID, r.Repository, r.Ref, r.Revision, r.Change, r.Cause, string(r.Basis), r.Principal, string(parameters), RunQueued, r.Queued.UnixNano())
		return err
	})
	if err != nil {
		return false, fmt.Errorf("queueing run %s: %w", r.ID, err)
	}
	return added, nil
}

// LeaseRun gives a worker the next run: of whoever has the fewest under way, the
// one that waits longest.
func (s *Store) LeaseRun(ctx context.Context, worker string, until time.Time) (r Run, ok bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		var err error
		r, err = scanRun(tx.QueryRowContext(ctx, "SELECT "+runColumns+" FROM run WHERE state = 'queued' ORDER BY (SELECT count(*) FROM run o WHERE o.principal = run.principal AND o.state IN ('leased', 'running')), queued, id LIMIT 1").Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		r.State, r.Worker, r.LeasedTo, r.Attempt, r.Fence = RunLeased, worker, until, r.Attempt+1, r.Fence+1
		_, err = tx.ExecContext(ctx, "UPDATE run SET state = ?, worker = ?, leased = ?, attempt = ?, fence = ? WHERE id = ?", r.State, worker, until.UnixNano(), r.Attempt, r.Fence, r.ID)
		return err
	})
	if err != nil {
		return r, false, fmt.Errorf("leasing a run: %w", err)
	}
	return r, ok, nil
}

// RenewRun prolongs a lease. held is false for one that is somebody else's by now,
// cancelled tells that nobody wants the run any more.
func (s *Store) RenewRun(ctx context.Context, id string, fence int64, until time.Time) (held, cancelled bool, err error) {
	held, err = s.ofHolder(ctx, id, fence, "leased = ?", until.UnixNano())
	if err != nil || !held {
		return held, false, err
	}
	err = s.db.QueryRowContext(ctx, "SELECT cancelled FROM run WHERE id = ?", id).Scan(&cancelled)
	if err != nil {
		return false, false, fmt.Errorf("looking up run %s: %w", id, err)
	}
	return true, cancelled, nil
}

// StartRun says that the holder of a run begins.
func (s *Store) StartRun(ctx context.Context, id string, fence int64, at time.Time) (held bool, err error) {
	return s.ofHolder(ctx, id, fence, "state = 'running', started = ?", at.UnixNano())
}

// EndRun says how a run ended.
func (s *Store) EndRun(ctx context.Context, id string, fence int64, e RunEnd, at time.Time) (held bool, err error) {
	return s.ofHolder(ctx, id, fence, "state = ?, effect = ?, code = ?, message = ?, finished = ?, worker = ''", e.State, e.Effect, e.Code, e.Message, at.UnixNano())
}

// ReturnRun gives a lease back, as if it had never been.
func (s *Store) ReturnRun(ctx context.Context, id string, fence int64) (held bool, err error) {
	return s.ofHolder(ctx, id, fence, "state = 'queued', attempt = attempt - 1, worker = '', leased = 0")
}

func (s *Store) ofHolder(ctx context.Context, id string, fence int64, set string, args ...any) (bool, error) {
	res, err := s.db.ExecContext(ctx, "UPDATE run SET "+set+" WHERE id = ? AND fence = ? AND state IN ('leased', 'running')", append(args, id, fence)...)
	if err != nil {
		return false, fmt.Errorf("changing run %s: %w", id, err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// ReclaimRuns queues again what was leased to workers that are gone, or whose
// lease ended; what was begun most times already is lost. It returns both.
func (s *Store) ReclaimRuns(ctx context.Context, now time.Time, gone func(worker string) bool, most int) (again, lost []Run, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT "+runColumns+" FROM run WHERE state IN ('leased', 'running') ORDER BY queued")
		if err != nil {
			return err
		}
		held, err := scanRuns(rows)
		if err != nil {
			return err
		}
		for _, r := range held {
			if now.Before(r.LeasedTo) && !gone(r.Worker) {
				continue
			}
			r.State, r.Message = RunQueued, ""
			if r.Attempt >= most {
				r.State, r.Code = RunLost, string(hallmark.CodeRunLost)
				r.Message = fmt.Sprintf("%d workers died with it", r.Attempt)
				lost = append(lost, r)
			} else {
				again = append(again, r)
			}
			var finished int64
			if r.State == RunLost {
				finished = now.UnixNano()
			}
			if _, err := tx.ExecContext(ctx, "UPDATE run SET state = ?, fence = fence + 1, worker = '', leased = 0, finished = ?, code = ?, message = ? WHERE id = ?", r.State, finished, r.Code, r.Message, r.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reclaiming runs: %w", err)
	}
	return again, lost, nil
}

// CancelRun ends a run that waits, and tells the holder of one that does not.
// ended is true where there was nothing to do.
func (s *Store) CancelRun(ctx context.Context, id, message string, at time.Time) (ended bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE run SET state = 'failed', cancelled = 1, finished = ?, code = ?, message = ? WHERE id = ? AND state = 'queued'", at.UnixNano(), string(hallmark.CodeRunCancelled), message, id); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE run SET cancelled = 1, message = ? WHERE id = ? AND state IN ('leased', 'running')", message, id); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, "SELECT NOT cancelled FROM run WHERE id = ?", id).Scan(&ended)
	})
	if err != nil {
		return false, fmt.Errorf("cancelling run %s: %w", id, err)
	}
	return ended, nil
}

// RunOf returns a run.
func (s *Store) RunOf(ctx context.Context, id string) (Run, bool, error) {
	r, err := scanRun(s.db.QueryRowContext(ctx, "SELECT "+runColumns+" FROM run WHERE id = ?", id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("looking up run %.40q: %w", id, err)
	}
	return r, true, nil
}

// Runs lists runs, the newest first; "" is any repository or state.
func (s *Store) Runs(ctx context.Context, repository string, state RunState) ([]Run, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+runColumns+" FROM run WHERE (? = '' OR repository = ?) AND (? = '' OR state = ?) ORDER BY queued DESC, id LIMIT 1000", repository, repository, state, state)
	if err != nil {
		return nil, fmt.Errorf("listing runs: %w", err)
	}
	return scanRuns(rows)
}

func scanRuns(rows *sql.Rows) ([]Run, error) {
	defer rows.Close()
	var out []Run
	for rows.Next() {
		r, err := scanRun(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// CountRuns counts the runs of a state.
func (s *Store) CountRuns(ctx context.Context, state RunState) (n int, err error) {
	if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM run WHERE state = ?", state).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting runs: %w", err)
	}
	return n, nil
}

// AddRunEvent keeps what was said of a run, in the order of the calls.
func (s *Store) AddRunEvent(ctx context.Context, run string, message []byte) error {
	_, err := s.db.ExecContext(ctx, "INSERT INTO run_event (run, n, message) VALUES (?, (SELECT coalesce(max(n), 0) + 1 FROM run_event WHERE run = ?), ?)", run, run, message)
	if err != nil {
		return fmt.Errorf("keeping an event of run %s: %w", run, err)
	}
	return nil
}

// RunEvents returns what was said of a run after the nth message, and the number
// of the last one.
func (s *Store) RunEvents(ctx context.Context, run string, after int) (messages [][]byte, last int, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT n, message FROM run_event WHERE run = ? AND n > ? ORDER BY n", run, after)
	if err != nil {
		return nil, after, fmt.Errorf("listing events of run %s: %w", run, err)
	}
	defer rows.Close()
	last = after
	for rows.Next() {
		var m []byte
		if err := rows.Scan(&last, &m); err != nil {
			return nil, after, fmt.Errorf("listing events of run %s: %w", run, err)
		}
		messages = append(messages, m)
	}
	return messages, last, rows.Err()
}
