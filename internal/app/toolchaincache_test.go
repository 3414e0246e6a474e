// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-sc/hallmark"
)

// TestAdmitCache: a cache in which a name and a content don't belong together is
// refused, and what is neither data nor entry is gone.
func TestAdmitCache(t *testing.T) {
	sum := sha256.Sum256([]byte("output"))
	output := hex.EncodeToString(sum[:])
	action := strings.Repeat("ab", 32)
	entry := fmt.Sprintf("v1 %s %s %20d %20d\n", action, output, 6, 1)
	for name, tt := range map[string]struct {
		files map[string]string
		good  bool
	}{
		"good":                  {map[string]string{output[:2] + "/" + output + "-d": "output", "ab/" + action + "-a": entry, "README": "x", "ab/other": "x"}, true},
		"another output":        {map[string]string{output[:2] + "/" + output + "-d": "poison", "ab/" + action + "-a": entry}, false},
		"no output":             {map[string]string{"ab/" + action + "-a": entry}, false},
		"another length":        {map[string]string{output[:2] + "/" + output + "-d": "output", "ab/" + action + "-a": strings.Replace(entry, " 6 ", " 7 ", 1)}, false},
		"entry of another name": {map[string]string{output[:2] + "/" + output + "-d": "output", "ab/" + action + "-a": strings.Replace(entry, "abab", "abcd", 1)}, false},
		"entry of two lines":    {map[string]string{output[:2] + "/" + output + "-d": "output", "ab/" + action + "-a": entry + entry}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range tt.files {
				p := filepath.Join(dir, filepath.FromSlash(f))
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			n, size, err := admitCache(dir)
			if (err == nil) != tt.good || tt.good && (n != 1 || size != 6) {
				t.Errorf("%d entries, %d bytes, %v", n, size, err)
			}
			for _, gone := range []string{"README", "ab/other"} {
				if _, err := os.Stat(filepath.Join(dir, gone)); tt.good && err == nil {
					t.Errorf("%s is left", gone)
				}
			}
		})
	}
}

// TestToolchainKey: a changed file gives another key, also with its bytes and
// times put back.
func TestToolchainKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "compile")
	if err := os.WriteFile(file, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	key := func() string {
		k, err := toolchainKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	before := key()
	if key() != before {
		t.Fatal("the key of one state differs")
	}
	for _, text := range []string{"two", "one"} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(file, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if key() == before {
		t.Error("a change that was undone does not show")
	}
}

// TestCacheList: what the cache held is known by a list that lies elsewhere; a
// cache without one, or of another toolchain, is not used, and one that is not
// whole is an error.
func TestCacheList(t *testing.T) {
	l := newLab(t)
	h, err := readHome(l.home)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "go", "ab"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go", "ab", "x-d"), []byte("output"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := h.keepCacheList(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := h.cacheList(t.Context(), "key"); ok || err != nil {
		t.Errorf("no list: %t, %v", ok, err)
	}
	name := func(text string) {
		if err := os.WriteFile(h.ToolchainCacheList(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name("key " + string(list) + "\n")
	held, got, ok, err := h.cacheList(t.Context(), "key")
	if err != nil || !ok || got != list || len(held) != 1 || held["go/ab/x-d"] != hallmark.DigestOf([]byte("output")) {
		t.Errorf("%v %s %t, %v", held, got, ok, err)
	}
	if _, _, ok, err := h.cacheList(t.Context(), "other"); ok || err != nil {
		t.Errorf("another toolchain: %t, %v", ok, err)
	}
	for what, text := range map[string]string{"no digest": "key\n", "not kept": "key " + string(hallmark.DigestOf([]byte("none"))) + "\n", "no list": "key " + string(mustPut(t, h, "x\n")) + "\n", "empty": ""} {
		name(text)
		if _, _, ok, err := h.cacheList(t.Context(), "key"); ok || err == nil {
			t.Errorf("%s: %t, %v", what, ok, err)
		}
	}
}

func mustPut(t *testing.T, h *Home, text string) hallmark.Digest {
	t.Helper()
	d, err := h.stores.blobs.Put(t.Context(), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}
