/* Print every open descriptor as "number target", one a line. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
	DIR *dir = opendir("/proc/self/fd");
	if (!dir) {
		perror("/proc/self/fd");
		return 1;
	}
	for (struct dirent *entry; (entry = readdir(dir));) {
		int fd = atoi(entry->d_name);
		if (entry->d_name[0] == '.' || fd == dirfd(dir))
			continue;
		char name[64], target[4096];
		snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
		ssize_t length = readlink(name, target, sizeof target - 1);
		if (length < 0)
			length = 0;
		target[length] = 0;
		printf("%d %s\n", fd, target);
	}
	return 0;
}
