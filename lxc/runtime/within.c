#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "attach.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

/* In a process forked from a program with many threads: system calls only. It stays
 * out of the pid namespace, so nobody in there can see or trace it, nor reach the
 * program by its /proc. */
static int enter(int pidfd, int users, int program, char **argv, char **env, int input, int null)
{
	struct sigaction act = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int i = 1; i < 65; i++)
		if (i != SIGKILL && i != SIGSTOP && i != 32 && i != 33)
			sigaction(i, &act, NULL);
	setsid();
	if (dup2(input, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		return errno;
	if (setns(pidfd, CLONE_NEWNS | (users ? CLONE_NEWUSER : 0)) < 0)
		return errno;
	if (users && (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, 0, 0, 0) < 0 ||
		      syscall(SYS_setresuid, 0, 0, 0) < 0))
		return errno;
	if (chdir("/") < 0 || syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return errno;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	syscall(SYS_execveat, program, "", argv, env, AT_EMPTY_PATH);
	return errno;
}

pid_t brig_within(int pidfd, int users, int program, char **argv, char **env, int input, int null)
{
	sigset_t all, old;
	int report[2], error = 0;
	ssize_t n;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC) < 0)
		return -1;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = fork();
	if (pid == 0) {
		error = enter(pidfd, users, program, argv, env, input, null);
		while (write(report[1], &error, sizeof(error)) < 0 && errno == EINTR)
			;
		_exit(1);
	}
	if (pid < 0)
		error = errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	close(report[1]);
	/* The end of the pipe comes when the program is executed. */
	while (pid > 0 && (n = read(report[0], &error, sizeof(error))) < 0 && errno == EINTR)
		;
	close(report[0]);
	if (error) {
		while (pid > 0 && syscall(SYS_wait4, pid, NULL, 0, NULL) < 0 && errno == EINTR)
			;
		errno = error;
		return -1;
	}
	return pid;
}
