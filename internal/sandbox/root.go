// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hallmark-sc/hallmark"
)

// Root is a whole file system that a program sees as its own and may change: it
// reads from directories, the uppermost first, which are never changed, and
// writes to the directory "upper" of Scratch. Nothing of the host's programs is
// there. The lowers have to hold the names of RootPoints, where the room puts its
// own things.
type Root struct {
	Lowers  []string
	Scratch string // made by NewScratch, for this one program
	// UID and GID are what the program sees itself as: the one user of the host
	// that it has is shown under these numbers.
	UID, GID int
}

// maxLowers bounds the directories of a root: the kernel takes one page of
// options.
const maxLowers = 120

// rootFiles are the files of /etc that are the room's own whatever the root
// holds: what speaks of the network and of the host's name.
func rootFiles() []string { return []string{"hostname", "hosts", "resolv.conf"} }

// RootPoints are the names that a root needs, relative to it: directories, and
// files that the room's own lie over.
func RootPoints() (dirs, files []string) {
	for _, name := range rootFiles() {
		files = append(files, "etc/"+name)
	}
	return []string{"dev", "etc", "proc"}, files
}

// OverlayAttributes is how the names of attributes begin that the kernel itself
// puts on what a traced program wrote; whatever else begins so is a program's.
func OverlayAttributes() string {
	if os.Geteuid() == 0 {
		return "trusted.overlay."
	}
	return "user.overlay."
}

// self is who a program sees itself as, and whether it has a root of its own.
type self struct {
	UID, GID int
	Rooted   bool
}

func (s Spec) self() self {
	if s.Root == nil {
		return self{UID: insideID, GID: insideID}
	}
	return self{UID: s.Root.UID, GID: s.Root.GID, Rooted: true}
}

// check refuses what does not go together.
func (s Spec) check() error {
	r := s.Root
	if r == nil {
		return nil
	}
	const most = 1<<31 - 1
	switch {
	case len(r.Lowers) == 0 || len(r.Lowers) > maxLowers:
		return hallmark.Errorf(hallmark.KindInternal, "a root of %d directories: want 1 to %d", len(r.Lowers), maxLowers)
	case s.Self || s.Workspace != nil || s.Toolchain.Root != "" || len(s.Mounts) > 0 || len(s.Layers) > 0 || s.Gateway != "" || len(s.Secrets) > 0:
		return hallmark.Errorf(hallmark.KindInternal, "a root with other directories or secrets beside it")
	case r.UID < 0 || r.GID < 0 || r.UID > most || r.GID > most:
		return hallmark.Errorf(hallmark.KindInternal, "a root for user %d and group %d", r.UID, r.GID)
	}
	for _, d := range append([]string{r.Scratch}, r.Lowers...) {
		if !filepath.IsAbs(d) || strings.ContainsAny(d, ":,\\\"\n") {
			return hallmark.Errorf(hallmark.KindInternal, "a root in %q", d)
		}
	}
	return nil
}

// grabRoot takes hold of the directories of a root.
func (f *furniture) grabRoot(r Root) {
	if _, ok := f.given["root"]; ok {
		return
	}
	for i, d := range r.Lowers {
		f.grab("root"+strconv.Itoa(i), d)
	}
	f.grab("root-scratch", r.Scratch)
}

// ownRoot lays the root over the empty one, which is seen no more, and puts the
// room's own things into it.
func (f *furniture) ownRoot(r Root) {
	f.rootEtc()
	if fd, ok := f.given["root"]; ok {
		f.do("mounting the root", unix.MoveMount(fd, "", unix.AT_FDCWD, newRoot, unix.MOVE_MOUNT_F_EMPTY_PATH))
		unix.Close(fd)
	} else {
		f.userRoot(r)
	}
	f.points()
	f.tmpfs("/dev", "mode=0755,size=64k")
	f.devices()
	f.proc()
	for _, name := range rootFiles() {
		f.put("etc-"+name, "/etc/"+name, false)
	}
}

// rootEtc writes the room's own files and takes hold of them, before the root
// covers them.
func (f *furniture) rootEtc() {
	const at = newRoot + "/.hallmark/etc/"
	f.do("making a directory", os.MkdirAll(at, 0o755))
	for _, name := range rootFiles() {
		if f.err == nil {
			f.do("writing /etc/"+name, os.WriteFile(at+name, []byte(etcFiles()[name]), 0o644))
			f.grab("etc-"+name, at+name)
		}
	}
}

// userRoot mounts the root as an ordinary user may.
func (f *furniture) userRoot(r Root) {
	var lowers []string
	for i := range r.Lowers {
		at := "/.hallmark/" + strconv.Itoa(i)
		f.put("root"+strconv.Itoa(i), at, false)
		lowers = append(lowers, newRoot+at)
	}
	f.put("root-scratch", "/.hallmark/s", true)
	if f.err != nil {
		return
	}
	opts := "userxattr,lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + newRoot + "/.hallmark/s/upper,workdir=" + newRoot + "/.hallmark/s/work"
	f.do("mounting the root", unix.Mount("overlay", newRoot, "overlay", unix.MS_NOSUID|unix.MS_NODEV, opts))
}

// points checks that what is mounted next lies in the root under its own name:
// through a link of the root it would lie wherever that leads.
func (f *furniture) points() {
	if f.err != nil {
		return
	}
	root, err := unix.Open(newRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.do("opening the root", err)
		return
	}
	defer unix.Close(root)
	dirs, files := RootPoints()
	for _, name := range append(dirs, files...) {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV})
		if err != nil {
			f.do("finding /"+name+" in the root", err)
			return
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		want := uint32(unix.S_IFDIR)
		if strings.Contains(name, "/") {
			want = unix.S_IFREG
		}
		if err == nil && st.Mode&unix.S_IFMT != want {
			err = errors.New("it is of another type")
		}
		f.do("finding /"+name+" in the root", err)
	}
}

// closeDev makes /dev read-only, when all that belongs there is there.
func (f *furniture) closeDev() {
	if f.err != nil {
		return
	}
	f.do("protecting /dev", unix.Mount("", newRoot+"/dev", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""))
}

// rootOverlay reports whether the root is an overlay that can be written to.
func rootOverlay(st unix.Statfs_t) bool {
	return int64(st.Type) == unix.OVERLAYFS_SUPER_MAGIC && st.Flags&unix.ST_RDONLY == 0 && st.Flags&unix.ST_NOSUID != 0 && st.Flags&unix.ST_NODEV != 0
}

// addRoot mounts the root of a traced program ourselves.
func (o *overlays) addRoot(r Root) error {
	return o.add("root", r.Lowers, Upper(r.Scratch), filepath.Join(r.Scratch, "work"))
}

// missing is the path of a program that is in no directory of PATH: starting it
// fails as starting any other that is not there.
func missing(name string) string { return fmt.Sprintf("/.not-in-PATH/%s", filepath.Base(name)) }
