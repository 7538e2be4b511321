#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <lxc/attach_options.h>
#include <lxc/lxccontainer.h>

#include "attach.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

/* All threads share one heap: Go's threads hardly use it, and each would map and
 * unmap 128 MiB for one of its own when it starts. */
__attribute__((constructor)) static void share_heap(void)
{
	mallopt(M_ARENA_MAX, 1);
}

static void report(struct brig_command *cmd, int step, int error)
{
	struct brig_report r = {.step = step, .error = error};

	while (write(cmd->report, &r, sizeof(r)) < 0 && errno == EINTR)
		;
}

/* Like a shell: the first match that can be run, else the best reason. */
static int search(struct brig_command *cmd)
{
	const char *file = cmd->argv[0];
	const char *p = NULL;
	char path[4096];
	int error = ENOENT;
	size_t n, len = strlen(file);

	if (len == 0)
		return ENOENT;
	if (strchr(file, '/')) {
		execve(file, cmd->argv, cmd->env);
		return errno;
	}
	for (char **e = cmd->env; *e; e++)
		if (strncmp(*e, "PATH=", 5) == 0)
			p = *e + 5;
	if (!p)
		p = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	for (;; p += n + 1) {
		n = strcspn(p, ":");
		if (n + len + 3 <= sizeof(path)) {
			/* An empty element is the working directory. */
			memcpy(path, n ? p : ".", n ? n : 1);
			memcpy(path + (n ? n : 1), "/", 1);
			memcpy(path + (n ? n : 1) + 1, file, len + 1);
			execve(path, cmd->argv, cmd->env);
			if (errno != ENOENT && errno != ENOTDIR && (errno != EACCES || error == ENOENT))
				error = errno;
			if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
				return error;
		}
		if (!p[n])
			return error;
	}
}

/* Runs in the container, as the user, in a process forked from a program with
 * many threads: system calls only. */
static int run(void *payload)
{
	struct brig_command *cmd = payload;
	struct rlimit files;
	struct sigaction act = {.sa_handler = SIG_DFL};
	sigset_t none;

	report(cmd, BRIG_ENTERED, 0);
	for (int i = 1; i < 65; i++)
		if (i != SIGKILL && i != SIGSTOP && i != 32 && i != 33)
			sigaction(i, &act, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(022);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		/* It may be lowered only. */
		if (files.rlim_max > cmd->hard_files)
			files.rlim_max = cmd->hard_files;
		files.rlim_cur = cmd->soft_files < files.rlim_max ? cmd->soft_files : files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	setsid();
	if (cmd->terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0) {
		report(cmd, BRIG_TERMINAL, errno);
		return 126;
	}
	if (chdir(cmd->dir) < 0 && (!cmd->any_dir || chdir("/") < 0)) {
		report(cmd, BRIG_DIR, errno);
		return 126;
	}
	if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0) {
		report(cmd, BRIG_SETUP, errno);
		return 126;
	}
	report(cmd, BRIG_EXEC, search(cmd));
	return 127;
}

int brig_attach(const char *path, const char *name, struct brig_command *cmd, pid_t *pid)
{
	lxc_attach_options_t o = LXC_ATTACH_OPTIONS_DEFAULT;
	struct lxc_container *c;
	int ret;

	c = lxc_container_new(name, path);
	if (!c)
		return -1;
	o.env_policy = LXC_ATTACH_CLEAR_ENV;
	o.initial_cwd = "/";
	o.uid = cmd->uid;
	o.gid = cmd->gid;
	if (cmd->ngroups > 0) {
		o.attach_flags |= LXC_ATTACH_SETGROUPS;
		o.groups.list = cmd->groups;
		o.groups.size = cmd->ngroups;
	}
	o.stdin_fd = cmd->stdio[0];
	o.stdout_fd = cmd->stdio[1];
	o.stderr_fd = cmd->stdio[2];
	ret = c->attach(c, run, cmd, &o, pid);
	lxc_container_put(c);
	return ret < 0 ? -1 : 0;
}

int brig_console(const char *path, const char *name, int *terminal)
{
	struct lxc_container *c;
	int ret, tty = 0;

	c = lxc_container_new(name, path);
	if (!c)
		return -1;
	ret = c->console_getfd(c, &tty, terminal);
	lxc_container_put(c);
	return ret;
}
