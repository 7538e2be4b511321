#ifndef BRIG_ATTACH_H
#define BRIG_ATTACH_H

#include <stddef.h>
#include <sys/types.h>

/* What to run in a container, and as whom. */
struct brig_command {
	char **argv;
	char **env;
	char *dir;
	int any_dir; /* where there is no dir, / will do */
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t ngroups;
	int stdio[3];
	int report;   /* pipe to write struct brig_report to */
	int terminal; /* stdin is to be the controlling terminal */
	unsigned long soft_files, hard_files;
};

/* Steps of the last part of the way into a container. */
enum { BRIG_ENTERED = 1, BRIG_TERMINAL, BRIG_DIR, BRIG_SETUP, BRIG_EXEC };

struct brig_report {
	int step;
	int error;
};

/* Starts a command; the caller has to wait for *pid. Returns 0, or -1. */
int brig_attach(const char *path, const char *name, struct brig_command *cmd, pid_t *pid);

/* Opens the console. Returns a descriptor that keeps it taken, or -1. */
int brig_console(const char *path, const char *name, int *terminal);

/* Runs a program, as root, in the mount namespace of a process, and its user
 * namespace if asked. Its standard input is given, and it has no other files. The
 * caller has to wait for the process, whose id is returned, or -1 with errno. */
pid_t brig_within(int pidfd, int users, int program, char **argv, char **env, int input, int null);

#endif
