/* Print the name of the session keyring. */
#include <linux/keyctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	char text[512] = "";
	if (syscall(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, text, sizeof text - 1) < 0) {
		perror("keyctl");
		return 1;
	}
	/* type;uid;gid;permissions;name */
	char *name = strrchr(text, ';');
	puts(name ? name + 1 : text);
	return 0;
}
