/* Print a file, as the process itself: no applet that changes its user, no shell. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char buffer[4096];
	ssize_t length;
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	if (fd < 0) {
		perror("open");
		return 1;
	}
	while ((length = read(fd, buffer, sizeof buffer)) > 0)
		if (write(1, buffer, length) != length)
			return 1;
	return 0;
}
