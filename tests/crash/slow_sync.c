/* To be preloaded: a sync takes as many seconds more as the file named by SYNC_SECONDS_FILE says just then. For what
   does not sync through Python, like SQLite; see slow_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int slow(const char *name, int fd)
{
    char text[32] = {0};
    const char *path = getenv("SYNC_SECONDS_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        ssize_t size = read(file, text, sizeof text - 1);
        close(file);
        double seconds = size > 0 ? atof(text) : 0;
        struct timespec left = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
        while (seconds > 0 && nanosleep(&left, &left) < 0 && errno == EINTR)
            ;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return slow("fsync", fd); }

int fdatasync(int fd) { return slow("fdatasync", fd); }
