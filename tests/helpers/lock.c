/* lock FILE: hold a lock of flock(2) on it for ever. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB)) {
		perror("lock");
		return 1;
	}
	for (;;)
		pause();
}
