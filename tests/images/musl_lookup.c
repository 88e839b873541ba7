/* Prints the name of its user, and the address of the host in its argument, as its C library looks them up. */
#include <arpa/inet.h>
#include <netdb.h>
#include <pwd.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct addrinfo wanted = {.ai_family = AF_INET}, *found;
    struct passwd *user = getpwuid(getuid());

    if (argc != 2 || !user || getaddrinfo(argv[1], NULL, &wanted, &found))
        return 1;
    printf("%s %s\n", user->pw_name, inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr));
    return 0;
}
