/* Put a character into the input of the terminal on stdin (TIOCSTI): what a program without a pty of its own must not. */
#include <stdio.h>
#include <sys/ioctl.h>

int main(void)
{
	char c = 'x';
	if (ioctl(0, TIOCSTI, &c)) {
		perror("TIOCSTI");
		return 1;
	}
	puts("injected");
	return 0;
}
