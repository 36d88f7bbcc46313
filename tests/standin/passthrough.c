/* A FUSE pass-through without caches of names or attributes, as OneData's client has it, that counts
 * its calls and bytes and can be slowed down or held. In C, so that it is not what is measured.
 *
 * passthrough BACKING CONTROL MOUNTPOINT [FUSE OPTIONS]
 *
 * CONTROL is a file of 64-bit numbers that is mapped: nanoseconds that each call takes longer, whether
 * calls are held, nanoseconds that each takes while the others wait, whether it tells that all has arrived
 * (looked at once), bytes written, bytes read, then the calls in the order of `enum call`. Others read and
 * write it meanwhile.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum call {
    GETATTR, READDIR, MKDIR, RMDIR, UNLINK, RENAME, CHMOD, UTIMENS, TRUNCATE, CREATE, OPEN, READ,
    WRITE, FLUSH, FSYNC, RELEASE, GETXATTR, CALLS
};

struct control {
    volatile long long latency_ns, held, alone_ns, tells;
    long long written, read, calls[CALLS];
};

static struct control *control;
static int root;
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;

static void add(long long *counter, long long number)
{
    __atomic_add_fetch(counter, number, __ATOMIC_RELAXED);
}

static void rest(long long ns)
{
    struct timespec pause = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&pause, &pause) != 0 && errno == EINTR)
        ;
}

static void meet(enum call call)
{
    long long latency = control->latency_ns;
    add(&control->calls[call], 1);
    if (latency > 0)
        rest(latency);
    if (control->alone_ns > 0) {
        pthread_mutex_lock(&alone);
        rest(control->alone_ns);
        pthread_mutex_unlock(&alone);
    }
    while (control->held)
        rest(5000000);
}

static const char *at(const char *path)
{
    return path[1] == '\0' ? "." : path + 1;
}

static int answer(int result)
{
    return result == -1 ? -errno : result;
}

static int do_getattr(const char *path, struct stat *status, struct fuse_file_info *file)
{
    meet(GETATTR);
    int result = file != NULL ? fstat((int)file->fh, status)
                              : fstatat(root, at(path), status, AT_SYMLINK_NOFOLLOW);
    if (result == 0) { /* OneData knows whole seconds */
        status->st_atim.tv_nsec = status->st_mtim.tv_nsec = status->st_ctim.tv_nsec = 0;
    }
    return answer(result);
}

static int do_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *file, enum fuse_readdir_flags flags)
{
    (void)offset, (void)file, (void)flags;
    meet(READDIR);
    int fd = openat(root, at(path), O_RDONLY | O_DIRECTORY);
    DIR *directory = fd == -1 ? NULL : fdopendir(fd);
    if (directory == NULL)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        if (fill(buffer, entry->d_name, NULL, 0, 0) != 0)
            break;
    closedir(directory);
    return 0;
}

static int do_mkdir(const char *path, mode_t mode)
{
    meet(MKDIR);
    return answer(mkdirat(root, at(path), mode));
}

static int do_rmdir(const char *path)
{
    meet(RMDIR);
    return answer(unlinkat(root, at(path), AT_REMOVEDIR));
}

static int do_unlink(const char *path)
{
    meet(UNLINK);
    return answer(unlinkat(root, at(path), 0));
}

static int do_rename(const char *from, const char *to, unsigned int flags)
{
    meet(RENAME);
    return answer(renameat2(root, at(from), root, at(to), flags));
}

static int do_chmod(const char *path, mode_t mode, struct fuse_file_info *file)
{
    (void)file;
    meet(CHMOD);
    return answer(fchmodat(root, at(path), mode, 0));
}

static int do_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *file)
{
    (void)file;
    meet(UTIMENS);
    return answer(utimensat(root, at(path), times, AT_SYMLINK_NOFOLLOW));
}

static int do_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
    meet(TRUNCATE);
    if (file != NULL)
        return answer(ftruncate((int)file->fh, size));
    int fd = openat(root, at(path), O_WRONLY);
    if (fd == -1)
        return -errno;
    int result = answer(ftruncate(fd, size));
    close(fd);
    return result;
}

static int opened(int fd, struct fuse_file_info *file)
{
    if (fd == -1)
        return -errno;
    file->fh = (uint64_t)fd;
    return 0;
}

static int do_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
    meet(CREATE);
    return opened(openat(root, at(path), (file->flags & ~O_APPEND) | O_CREAT, mode), file);
}

static int do_open(const char *path, struct fuse_file_info *file)
{
    meet(OPEN);
    return opened(openat(root, at(path), file->flags & ~O_APPEND), file);
}

static int do_read(const char *path, char *buffer, size_t size, off_t offset,
                   struct fuse_file_info *file)
{
    (void)path;
    meet(READ);
    ssize_t got = pread((int)file->fh, buffer, size, offset);
    if (got > 0)
        add(&control->read, got);
    return got == -1 ? -errno : (int)got;
}

static int do_write(const char *path, const char *buffer, size_t size, off_t offset,
                    struct fuse_file_info *file)
{
    (void)path;
    meet(WRITE);
    ssize_t put = pwrite((int)file->fh, buffer, size, offset);
    if (put > 0)
        add(&control->written, put);
    return put == -1 ? -errno : (int)put;
}

static int do_flush(const char *path, struct fuse_file_info *file)
{
    (void)path, (void)file;
    meet(FLUSH);
    return 0;
}

static int do_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    (void)path, (void)data_only, (void)file;
    meet(FSYNC); /* the storage's own flush is not what is measured */
    return 0;
}

static int do_release(const char *path, struct fuse_file_info *file)
{
    (void)path;
    meet(RELEASE);
    close((int)file->fh);
    return 0;
}

static int do_statfs(const char *path, struct statvfs *space)
{
    (void)path;
    return answer(fstatvfs(root, space));
}

static int do_getxattr(const char *path, const char *name, char *value, size_t size)
{
    static const char all[] = "100%";
    (void)path;
    meet(GETXATTR);
    if (strcmp(name, "org.onedata.replication_progress") != 0)
        return -ENODATA;
    if (size >= sizeof all - 1)
        memcpy(value, all, sizeof all - 1);
    return sizeof all - 1;
}

static void *do_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    (void)connection;
    config->entry_timeout = config->attr_timeout = config->negative_timeout = 0;
    return NULL;
}

static struct fuse_operations operations = {
    .init = do_init,         .getattr = do_getattr,   .readdir = do_readdir, .mkdir = do_mkdir,
    .rmdir = do_rmdir,       .unlink = do_unlink,     .rename = do_rename,   .chmod = do_chmod,
    .utimens = do_utimens,   .truncate = do_truncate, .create = do_create,   .open = do_open,
    .read = do_read,         .write = do_write,       .flush = do_flush,     .fsync = do_fsync,
    .release = do_release,   .statfs = do_statfs,
};

int main(int argc, char *argv[])
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s BACKING CONTROL MOUNTPOINT [FUSE OPTIONS]\n", argv[0]);
        return 2;
    }
    root = open(argv[1], O_RDONLY | O_DIRECTORY);
    int fd = open(argv[2], O_RDWR | O_CREAT, 0644);
    if (root == -1 || fd == -1 || ftruncate(fd, sizeof(struct control)) == -1) {
        perror("passthrough");
        return 1;
    }
    control = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) {
        perror("passthrough");
        return 1;
    }
    if (control->tells) /* or the kernel would ask for other attributes, too */
        operations.getxattr = do_getxattr;
    umask(0);
    argv[2] = argv[0];
    return fuse_main(argc - 2, argv + 2, &operations, NULL);
}
