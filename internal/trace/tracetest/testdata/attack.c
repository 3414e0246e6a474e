// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0
//
// Ways to open, write, run and hide that a trace must not miss. The first
// argument chooses one; each prints what it did.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) { perror(what); exit(99); }

static void show(const char *how, int fd) {
	char b[64];
	if (fd < 0) die(how);
	ssize_t n = read(fd, b, sizeof b - 1);
	b[n > 0 ? n : 0] = 0;
	printf("%s %s\n", how, b);
	close(fd);
}

// ways: each way to open for reading, one file each, in /in.
static void ways(void) {
	int d = open("/in/d", O_RDONLY | O_DIRECTORY), p = open("/in/d", O_PATH);
	show("openat", openat(d, "openat", O_RDONLY));
	show("opath", openat(p, "opath", O_RDONLY));
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
	show("openat2", syscall(SYS_openat2, d, "openat2", &how, sizeof how));
	if (chdir("/in/d")) die("chdir");
	show("relative", open("relative", O_RDONLY));
	show("dots", open("../d/./dots", O_RDONLY));
	show("symlink", open("tosymlink", O_RDONLY));
#ifdef SYS_open
	show("open", syscall(SYS_open, "open", O_RDONLY));
#else // an architecture without the older call
	show("open", open("open", O_RDONLY));
#endif
	int q = open("reopen", O_PATH);
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", q);
	show("reopen", open(name, O_RDONLY));
	int m = open("mmap", O_RDONLY);
	char *at = mmap(0, 4, PROT_READ, MAP_PRIVATE, m, 0);
	close(m);
	printf("mmap %.4s\n", at);
	struct open_how w = {.flags = O_RDWR | O_CREAT, .mode = 0644};
	int o = syscall(SYS_openat2, AT_FDCWD, "/tmp/written2", &w, sizeof w);
	if (write(o, "two", 3) != 3) die("write");
	close(o);
	o = creat("/tmp/creat", 0644);
	if (write(o, "made", 4) != 4) die("write");
	close(o);
	o = open("/tmp/append", O_WRONLY | O_APPEND | O_CREAT, 0644);
	if (write(o, "app", 3) != 3) die("write");
	close(o);
	if (truncate("/tmp/append", 1)) die("truncate");
}

static void deleted(void) {
	int f = open("/tmp/gone", O_RDWR | O_CREAT, 0600);
	if (write(f, "gone", 4) != 4) die("write");
	close(f);
	f = open("/tmp/gone", O_RDONLY);
	unlink("/tmp/gone");
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", f);
	show("deleted", open(name, O_RDONLY));
	f = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	if (write(f, "tmpfile", 7) != 7) die("write");
	snprintf(name, sizeof name, "/proc/self/fd/%d", f);
	if (linkat(AT_FDCWD, name, AT_FDCWD, "/tmp/linked", AT_SYMLINK_FOLLOW)) die("linkat");
	close(f);
	show("linked", open("/tmp/linked", O_RDONLY));
	f = open("/tmp/closed", O_WRONLY | O_CREAT, 0);
	close(f);
}

// flip good evil N: another thread swaps the path while it is opened.
static char path[4096];
static volatile int stop;
static volatile int diff;
static char one, two;
static void *flipper(void *x) {
	while (!stop) {
		path[diff] = two;
		for (volatile int i = 0; i < 300; i++);
		path[diff] = one;
		for (volatile int i = 0; i < 300; i++);
	}
	return 0;
}
// Each open is one of a file with a content of its own: dir/g-I or dir/e-I, made
// before.
static void flip(const char *dir, int n) {
	int evil = 0;
	pthread_t t;
	one = 'g', two = 'e';
	diff = strlen(dir) + 1;
	snprintf(path, sizeof path, "%s/g-0", dir);
	pthread_create(&t, 0, flipper, 0);
	for (int i = 0; i < n; i++) {
		char number[16];
		snprintf(number, sizeof number, "-%d", i);
		strcpy(path + diff + 1, number);
		int f = open(path, O_RDONLY);
		char b;
		if (f < 0 || read(f, &b, 1) != 1) die("flip");
		if (b == 'e') printf("e-%d\n", i), evil++;
		else printf("g-%d\n", i);
		close(f);
	}
	stop = 1;
	pthread_join(t, 0);
}

// swap: while a thread opens, another reads what it gets and puts something else
// into its place.
static volatile int target = -1, innocent;
static int seen[100000], nseen;
static void *swapper(void *how) {
	while (!stop) {
		int k = target;
		if (k < 0) continue;
		char b[16];
		ssize_t n = pread(k, b, sizeof b - 1, 0);
		if (n <= 0) continue;
		b[n] = 0;
		if (*b == 's' && nseen < 100000) {
			seen[nseen++] = atoi(b + 1);
			if (*(char *)how == 'd') dup2(innocent, k);
			else if (*(char *)how == 'o') { close(k); open("/in/innocent", O_RDONLY); }
			else if (*(char *)how == 'f') { close(k); fcntl(innocent, F_DUPFD, k); }
			else close(k);
			target = -1;
		}
	}
	return 0;
}
static void swap(char *how, int n) {
	innocent = open("/in/innocent", O_RDONLY);
	int next = dup(innocent);
	close(next);
	pthread_t t;
	pthread_create(&t, 0, swapper, how);
	for (int i = 0; i < n; i++) {
		char name[64];
		snprintf(name, sizeof name, "/in/s/%d", i);
		target = next;
		int f = open(name, O_RDONLY);
		target = -1;
		if (f >= 0) close(f);
		for (int k = next; k < next + 4; k++) close(k);
	}
	stop = 1;
	pthread_join(t, 0);
	for (int i = 0; i < nseen; i++) printf("s%d\n", seen[i]);
}

static void uring(void) {
	char p[128] = {0};
	if (syscall(SYS_io_uring_setup, 4, p) >= 0) printf("io_uring works\n");
	else printf("io_uring %s\n", errno == ENOSYS ? "missing" : strerror(errno));
}

static void hide(char *prog, char **argv) {
	int f = open(prog, O_RDONLY), m = memfd_create("hidden", 0);
	if (m < 0) { printf("memfd refused\n"); return; }
	char b[65536];
	for (ssize_t n; (n = read(f, b, sizeof b)) > 0;)
		if (write(m, b, n) != n) die("write");
	write(m, "tail", 4);
	char *env[] = {0};
	fflush(stdout);
	syscall(SYS_execveat, m, "", argv, env, AT_EMPTY_PATH);
	printf("memfd refused\n");
}

// shared: a mapping outlives the descriptor and changes the file while another
// process reads it.
static void shared(void) {
	int f = open("/tmp/shared", O_RDWR | O_CREAT, 0644);
	if (write(f, "before", 6) != 6) die("write");
	char *at = mmap(0, 6, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	at[5] = 'E';
	close(f);
	if (!fork()) {
		show("shared", open("/tmp/shared", O_RDONLY));
		fflush(stdout);
		_exit(0);
	}
	wait(0);
	memcpy(at, "after!", 6);
	munmap(at, 6);
}

// misled: a process reads half of a file, another one writes it anew.
static void misled(void) {
	int f = open("/tmp/half", O_WRONLY | O_CREAT, 0644);
	if (write(f, "firstfirst", 10) != 10) die("write");
	close(f);
	f = open("/tmp/half", O_RDONLY);
	char b[5];
	read(f, b, 5);
	if (!fork()) {
		int g = open("/tmp/half", O_WRONLY);
		if (write(g, "SECONDSECO", 10) != 10) die("write");
		_exit(0);
	}
	wait(0);
	read(f, b, 5);
	printf("misled %.5s\n", b);
}

static void *thread_exec(void *argv) {
	execv(((char **)argv)[0], argv);
	return 0;
}
static void *sleeper(void *x) { for (;;) pause(); }

static void *opener(void *dir) {
	for (int i = 0; i < 200; i++) {
		char name[64];
		snprintf(name, sizeof name, "/in/t/%ld-%d", (long)dir, i);
		int f = open(name, O_RDONLY);
		if (f < 0) die(name);
		close(f);
	}
	return 0;
}

static void pass(void) {
	int s[2];
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	char control[CMSG_SPACE(sizeof(int))] = {0}, c = 'x';
	struct iovec io = {&c, 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (!fork()) {
		int f = open("/in/passed", O_RDONLY);
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &f, sizeof f);
		if (sendmsg(s[0], &m, 0) != 1) die("sendmsg");
		_exit(0);
	}
	if (recvmsg(s[1], &m, 0) != 1) die("recvmsg");
	int f;
	memcpy(&f, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof f);
	show("passed", f);
	wait(0);
}

static int odd(void *x) {
	syscall(SYS_openat, AT_FDCWD, "/in/odd", O_RDONLY);
	stop = 1;
	return 0;
}

int main(int argc, char **argv) {
	setvbuf(stdout, 0, _IOLBF, 0);
	char *what = argv[1];
	if (!strcmp(what, "ways")) ways();
	else if (!strcmp(what, "deleted")) deleted();
	else if (!strcmp(what, "flip")) flip(argv[2], atoi(argv[3]));
	else if (!strcmp(what, "swap")) swap(argv[2], atoi(argv[3]));
	else if (!strcmp(what, "uring")) uring();
	else if (!strcmp(what, "hide")) hide(argv[2], argv + 2);
	else if (!strcmp(what, "shared")) shared();
	else if (!strcmp(what, "misled")) misled();
	else if (!strcmp(what, "pass")) pass();
	else if (!strcmp(what, "dlopen")) {
		void *h = dlopen(argv[2], RTLD_NOW);
		if (!h) { printf("%s\n", dlerror()); return 1; }
		printf("dlopen %d\n", ((int (*)(void))dlsym(h, "answer"))());
	} else if (!strcmp(what, "threadexec")) {
		pthread_t t, u;
		pthread_create(&u, 0, sleeper, 0);
		pthread_create(&t, 0, thread_exec, argv + 2);
		for (;;) pause();
	} else if (!strcmp(what, "threads")) {
		pthread_t t[8];
		for (long i = 0; i < 8; i++) pthread_create(t + i, 0, opener, (void *)i);
		for (int i = 0; i < 8; i++) pthread_join(t[i], 0);
	} else if (!strcmp(what, "untraced")) {
		long p = syscall(SYS_clone, 0x00800000 | SIGCHLD, 0, 0, 0, 0); // CLONE_UNTRACED
		if (!p) { execl("/usr/bin/true", "true", (char *)0); _exit(3); }
		printf("untraced %s\n", p < 0 ? "refused" : "made");
		if (p > 0) wait(0);
	} else if (!strcmp(what, "oddthread")) {
		// A thread whose exit signal is one of a process looks like a fork.
		static char stack[65536];
		if (clone(odd, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | SIGCHLD, 0) < 0) die("clone");
		while (!stop);
	} else return 98;
	return 0;
}
