/*
 * The CNI executable of a node that runs the daemon, `userspace-cni daemon`.
 *
 * The shim sends its environment and standard input to the daemon's socket, prints the answer and exits
 * with the status in it. It knows nothing about networks and engines.
 *
 * If nothing listens on the socket, the shim executes the one-process plugin, provided that
 * `userspace-cni install` configured one. Otherwise, and if the daemon closes the connection or exceeds
 * the deadline, ADD, CHECK and GC return an error that makes the runtime retry, STATUS returns "not
 * available", and a DEL is stored durably for the daemon to execute later, so that pods can be removed.
 *
 * All integers on the wire are unsigned, 32 bits, big-endian:
 *   request  "ucni" | 1 | length E | length S | E bytes: NAME=VALUE, each ended by NUL | S bytes: stdin
 *   answer   "ucni" | 1 | exit status | length O | length R | O bytes: stdout | R bytes: stderr
 *
 * The shim is linked statically, so it runs in any root directory. It never allocates memory: its buffers
 * are in .bss, where a page uses no memory until it is touched.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024 * 1024)

enum {
    PROTOCOL = 1,
    REQUEST_HEADER = 16,
    ANSWER_HEADER = 20,
    ENVIRONMENT_MAX = 2 * MIB,
    STDIN_MAX = 16 * MIB,
    ANSWER_MAX = 16 * MIB,
    STATUS_MAX = 255,
};

/* CNI error codes: CNI SPEC 1.1.0, "Error". */
enum {
    INVALID_ENVIRONMENT = 4,
    IO_FAILURE = 5,
    DECODING_FAILURE = 6,
    TRY_AGAIN_LATER = 11,
    NOT_AVAILABLE = 50,
};

/* The versions in core's cni/versions.py, oldest first. */
static const char *const SUPPORTED[] = {"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
#define VERSIONS (sizeof SUPPORTED / sizeof *SUPPORTED)
#define NEWEST SUPPORTED[VERSIONS - 1]

/* `userspace-cni install` searches the file for the marker and overwrites the fields after it. */
struct settings {
    char marker[32];
    char socket[108]; /* sizeof sun_path, with its final NUL */
    char queue[256];
    char fallback[256]; /* empty for none */
    uint32_t deadline;  /* milliseconds, from the start of connecting to the last byte of the answer */
};
static const volatile struct settings installed = {
    .marker = "userspace-cni shim: settings, 1",
    .socket = "/run/userspace-cni/daemon.sock",
    .queue = "/var/lib/cni/userspace/queue",
    .deadline = 120000,
};
static struct settings settings;

static unsigned char request[REQUEST_HEADER + ENVIRONMENT_MAX + STDIN_MAX + 1]; /* + 1 detects excess */
static size_t request_size;
static const char *version; /* cniVersion of answers that the shim itself writes */
static unsigned char answer[ANSWER_HEADER + ANSWER_MAX];
static char problem[1024]; /* why the daemon did not serve the request */

/* Read the settings through volatile; otherwise the compiler would use the values in the source. */
static void load_settings(void)
{
    for (size_t i = 0; i < sizeof settings; i++)
        ((char *)&settings)[i] = ((const volatile char *)&installed)[i];
}

static void put_number(unsigned char *at, size_t number)
{
    uint32_t wire = htonl((uint32_t)number);
    memcpy(at, &wire, sizeof wire);
}

static uint32_t get_number(const unsigned char *at)
{
    uint32_t wire;
    memcpy(&wire, at, sizeof wire);
    return ntohl(wire);
}

/* If the caller closed a standard stream, a new descriptor could get its number. Move it above 2. */
static int clear_of_stdio(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return higher;
}

/* Return whether to repeat a failed read or write. The caller's pipes may be non-blocking. */
static bool may_repeat(int fd, short events)
{
    if (errno == EINTR)
        return true;
    struct pollfd wait = {.fd = fd, .events = events};
    return errno == EAGAIN && (poll(&wait, 1, -1) > 0 || errno == EINTR);
}

static bool write_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        ssize_t written = write(fd, at, size);
        if (written >= 0) {
            at += written;
            size -= (size_t)written;
        } else if (!may_repeat(fd, POLLOUT)) {
            return false;
        }
    }
    return true;
}

/* -- CNI answers that the shim itself writes */

/* Append to `out`. It is large enough for every answer, because paths come from the node's settings. */
static char out[16 * 1024];
static size_t out_size;

static void put(const char *text)
{
    size_t size = strnlen(text, sizeof out - out_size);
    memcpy(out + out_size, text, size);
    out_size += size;
}

static void put_string(const char *text)
{
    put("\"");
    for (; *text; text++) {
        char escaped[8];
        bool special = *text == '"' || *text == '\\' || (unsigned char)*text < ' ';
        snprintf(escaped, sizeof escaped, special ? "\\u%04x" : "%c", (unsigned char)*text);
        put(escaped);
    }
    put("\"");
}

_Noreturn static void finish(int status)
{
    put("\n");
    exit(write_all(STDOUT_FILENO, out, out_size) ? status : 1);
}

_Noreturn static void fail(int code, const char *msg, const char *details)
{
    char number[16];
    snprintf(number, sizeof number, "%d", code);
    put("{\"cniVersion\": \"");
    put(version);
    put("\", \"code\": ");
    put(number);
    put(", \"msg\": ");
    put_string(msg);
    put(", \"details\": ");
    put_string(details);
    put("}");
    finish(1);
}

_Noreturn static void answer_version(const char *stated)
{
    put("{\"cniVersion\": \"");
    put(*stated ? stated : NEWEST);
    put("\", \"supportedVersions\": [");
    for (size_t i = 0; i < VERSIONS; i++) {
        put(i ? ", \"" : "\"");
        put(SUPPORTED[i]);
        put("\"");
    }
    put("]}");
    finish(0);
}

_Noreturn static void usage(void)
{
    put("userspace: a CNI plugin that attaches containers to user-space dataplanes\n"
        "CNI protocol versions supported: ");
    for (size_t i = 0; i < VERSIONS; i++) {
        put(i ? ", " : "");
        put(SUPPORTED[i]);
    }
    put("\nIt is executed by a container runtime; people use userspace-cni.\n");
    write_all(STDERR_FILENO, out, out_size);
    exit(0);
}

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

/* Return the position of a string's closing quote; `at` is behind the opening one. */
static const char *end_of_string(const char *at, const char *end)
{
    while (at < end && *at != '"')
        at += *at == '\\' ? 2 : 1;
    return at < end ? at : end;
}

/*
 * Copy the value of the outermost object's "cniVersion", or an empty string if there is none or it
 * contains characters other than digits and dots. This is not a JSON parser: it only distinguishes
 * strings and nesting.
 */
static void find_version(const char *at, const char *end, char value[static 17])
{
    static const char KEY[] = "cniVersion";
    int depth = 0;

    *value = '\0';
    for (; at < end; at++) {
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        if (*at != '"')
            continue;
        const char *word = at + 1;
        at = end_of_string(word, end);
        if (depth != 1 || at - word != sizeof KEY - 1 || memcmp(word, KEY, sizeof KEY - 1) != 0)
            continue;
        const char *colon = skip_space(at + 1, end);
        if (colon >= end || *colon != ':')
            continue;
        const char *quote = skip_space(colon + 1, end);
        if (quote >= end || *quote != '"')
            return;
        const char *close = end_of_string(quote + 1, end);
        size_t size = (size_t)(close - quote - 1);
        if (close == end || size > 16)
            return;
        memcpy(value, quote + 1, size);
        value[size] = '\0';
        if (strspn(value, "0123456789.") != size)
            *value = '\0';
        return;
    }
}

/* Build the request frame from environment and standard input; store its cniVersion in `stated`. */
static void read_request(char stated[static 17])
{
    size_t size = REQUEST_HEADER;
    for (char **variable = environ; *variable; variable++) {
        size_t length = strlen(*variable) + 1;
        if (length > REQUEST_HEADER + ENVIRONMENT_MAX - size)
            fail(INVALID_ENVIRONMENT, "the environment is larger than 2 MiB",
                 "call the plugin with fewer or shorter variables");
        memcpy(request + size, *variable, length);
        size += length;
    }
    const size_t start = size;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, request + size, start + STDIN_MAX + 1 - size);
        if (got == 0)
            break;
        if (got > 0)
            size += (size_t)got;
        else if (!may_repeat(STDIN_FILENO, POLLIN))
            fail(IO_FAILURE, "standard input cannot be read", strerror(errno));
        if (size > start + STDIN_MAX)
            fail(DECODING_FAILURE, "the configuration on standard input is larger than 16 MiB",
                 "no network configuration is; see what the caller passes");
    }
    memcpy(request, "ucni", 4);
    put_number(request + 4, PROTOCOL);
    put_number(request + 8, start - REQUEST_HEADER);
    put_number(request + 12, size - start);
    request_size = size;

    find_version((char *)request + start, (char *)request + size, stated);
    for (size_t i = 0; i < VERSIONS; i++)
        if (strcmp(stated, SUPPORTED[i]) == 0)
            version = SUPPORTED[i];
}

/* -- the daemon */

static int64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Limit the socket's next operation to `deadline` (microseconds); fail with EAGAIN after it. */
static bool limit(int fd, int option, int64_t deadline)
{
    int64_t left = deadline - microseconds();
    if (left <= 0) {
        errno = EAGAIN;
        return false;
    }
    struct timeval time = {.tv_sec = left / 1000000, .tv_usec = left % 1000000};
    return setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) == 0;
}

/* Connect to the daemon. This blocks while the daemon's backlog is full. */
static int dial(int64_t deadline)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, settings.socket, sizeof address.sun_path);
    int fd = clear_of_stdio(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (fd < 0)
        return -1;
    do {
        if (limit(fd, SO_SNDTIMEO, deadline)
            && connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return fd;
    } while (errno == EINTR);
    return -1;
}

static void send_request(int fd, int64_t deadline)
{
    for (size_t sent = 0; sent < request_size && limit(fd, SO_SNDTIMEO, deadline);) {
        ssize_t count = send(fd, request + sent, request_size - sent, MSG_NOSIGNAL);
        if (count >= 0)
            sent += (size_t)count;
        else if (errno != EINTR)
            return; /* the daemon may have answered before reading everything; receive its answer */
    }
}

/* Receive into `answer`. Return false without a complete answer; errno is 0 if it is invalid. */
static bool receive_answer(int fd, int64_t deadline)
{
    size_t got = 0, size = ANSWER_HEADER;
    while (got < size) {
        if (!limit(fd, SO_RCVTIMEO, deadline))
            return false;
        ssize_t count = recv(fd, answer + got, size - got, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return false;
        errno = 0;
        if (count == 0)
            return false;
        got += (size_t)count;
        if (got != ANSWER_HEADER)
            continue;
        uint64_t body = (uint64_t)get_number(answer + 12) + get_number(answer + 16);
        if (memcmp(answer, "ucni", 4) != 0 || get_number(answer + 4) != PROTOCOL
            || get_number(answer + 8) > STATUS_MAX || body > ANSWER_MAX)
            return false;
        size += (size_t)body;
    }
    return true;
}

_Noreturn static void pass_on(void)
{
    size_t output = get_number(answer + 12), messages = get_number(answer + 16);
    write_all(STDERR_FILENO, answer + ANSWER_HEADER + output, messages);
    if (!write_all(STDOUT_FILENO, answer + ANSWER_HEADER, output))
        exit(1); /* the caller did not get the result, so report failure */
    exit((int)get_number(answer + 8));
}

/* -- without the daemon */

/* Open the queue's directory; create it durably if it is missing and its parent exists. */
static int open_queue(void)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int directory = clear_of_stdio(open(settings.queue, flags));
    if (directory >= 0 || errno != ENOENT || (mkdir(settings.queue, 0700) < 0 && errno != EEXIST))
        return directory;
    if ((directory = clear_of_stdio(open(settings.queue, flags))) < 0)
        return -1;
    int parent = clear_of_stdio(openat(directory, "..", flags));
    return parent < 0 || fsync(parent) < 0 ? -1 : directory;
}

/* Write the request into the queue. Return true only if it would survive a power failure. */
static bool queue_request(void)
{
    struct timespec now;
    char name[64]; /* starts with a dot until the file is complete; names sort by time */
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(name, sizeof name, ".%011lld%09ld-%ld.del", (long long)now.tv_sec, now.tv_nsec,
             (long)getpid());

    int directory = open_queue();
    if (directory < 0)
        return false;
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int file = clear_of_stdio(openat(directory, name, flags, 0600));
    if (file < 0)
        return false;
    if (write_all(file, request, request_size) && fsync(file) == 0
        && renameat(directory, name, directory, name + 1) == 0 && fsync(directory) == 0)
        return true;
    int cause = errno;
    unlinkat(directory, name, 0);
    errno = cause;
    return false;
}

_Noreturn static void give_up(const char *command)
{
    const char *advice = "see whether the daemon runs (userspace-cni daemon), and its log; then try again";

    if (strcmp(command, "STATUS") == 0)
        fail(NOT_AVAILABLE, problem, advice);
    if (strcmp(command, "ADD") == 0 || strcmp(command, "CHECK") == 0 || strcmp(command, "GC") == 0)
        fail(TRY_AGAIN_LATER, problem, advice);
    if (strcmp(command, "DEL") != 0)
        fail(INVALID_ENVIRONMENT, "unknown CNI_COMMAND",
             "expected one of ADD, DEL, CHECK, GC, STATUS, VERSION");
    if (!queue_request()) {
        char msg[512];
        snprintf(msg, sizeof msg, "the DEL cannot be queued in %s: %s", settings.queue, strerror(errno));
        fail(TRY_AGAIN_LATER, msg, problem);
    }
    dprintf(STDERR_FILENO, "userspace: %s: the DEL is queued in %s\n", problem, settings.queue);
    exit(0);
}

int main(int argc, char **argv)
{
    const char *command = getenv("CNI_COMMAND");
    char stated[17];
    int fd = -1;

    (void)argc;
    load_settings();
    version = NEWEST;
    if (command == NULL || *command == '\0')
        usage();

    const int64_t deadline = microseconds() + (int64_t)settings.deadline * 1000;
    const bool is_version = strcmp(command, "VERSION") == 0;
    if (!is_version && (fd = dial(deadline)) < 0) {
        int cause = errno;
        int size = snprintf(problem, sizeof problem, "the daemon does not accept at %s: %s",
                            settings.socket, strerror(cause));
        /* With EAGAIN the daemon is running but busy. Standard input has not been read yet. */
        if (cause != EAGAIN && *settings.fallback) {
            execve(settings.fallback, argv, environ);
            snprintf(problem + size, sizeof problem - (size_t)size, "; nor can %s be executed: %s",
                     settings.fallback, strerror(errno));
        }
    }
    signal(SIGPIPE, SIG_IGN); /* only now, because the fallback would inherit it */
    read_request(stated);
    if (is_version)
        answer_version(stated);
    if (fd >= 0) {
        send_request(fd, deadline);
        if (receive_answer(fd, deadline))
            pass_on();
        snprintf(problem, sizeof problem, "the daemon at %s %s", settings.socket,
                 errno == EAGAIN ? "did not answer in time" : "broke off, or gave no valid answer");
    }
    give_up(command);
}
