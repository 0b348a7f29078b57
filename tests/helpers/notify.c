/* notify TEXT: send one message to $NOTIFY_SOCKET, as sd_notify(3) does. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (argc != 2 || !path || fd < 0 || strlen(path) >= sizeof address.sun_path) {
		fprintf(stderr, "notify: no socket\n");
		return 1;
	}
	memcpy(address.sun_path, path, strlen(path));
	if (path[0] == '@')
		address.sun_path[0] = 0;
	socklen_t length = offsetof(struct sockaddr_un, sun_path) + strlen(path) + (path[0] != '@');
	if (sendto(fd, argv[1], strlen(argv[1]), 0, (struct sockaddr *)&address, length) < 0) {
		perror("sendto");
		return 1;
	}
	return 0;
}
