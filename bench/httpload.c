/* Small HTTP/1.1 keep-alive load client (GET and PUT), one thread, epoll: fast enough to load a server that uses
 * sendfile, and it takes large bodies in large reads. Built by bench/ratio.py (gcc -O2).
 *
 * httpload -p PORT -c CONNS -d SECONDS [-m GET|PUT] [-s BODY | -f FILE] [-b FIRST] [-k KEYS] [-t] [-T FILE] [PATH]
 *   PATH may hold one %ld (FIRST + request counter modulo KEYS); -T: one target a line instead, taken in turn.
 *   -N: the body file is so many bodies of equal length, taken in turn.
 *   -f: the body is that file; -s: so many bytes, with -R random ones; -t: recv with MSG_TRUNC (do not copy).
 *   -H: an extra header line.
 * Prints one line of JSON: requests, bad (status other than 2xx), rates, latencies, CPU of the client. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct { char *body; int fd, hlen, ohl, sending, status; long left; size_t off; double t0; char h[8192], oh[1024]; } conn;
static long body, keys = 1L << 60, first, counter, ntargets, nbodies = 1; static char **targets; static char *bodybuf, *path, *method = "GET", *extra = "";
static int ep, port, trunc_; static long done, bad, bin, bout; static float *lat; static long nlat;
static char rbuf[1 << 20];
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }

static void want(conn *c, int ev) { struct epoll_event e = {.events = ev, .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); }
static void push(conn *c) {
    size_t tot = c->ohl + body;
    while (c->off < tot) {
        struct iovec v[2]; int n = 0;
        if (c->off < (size_t)c->ohl) { v[n].iov_base = c->oh + c->off; v[n++].iov_len = c->ohl - c->off; if (body) { v[n].iov_base = c->body; v[n++].iov_len = body; } }
        else { size_t o = c->off - c->ohl; v[n].iov_base = c->body + o; v[n++].iov_len = body - o; }
        ssize_t w = writev(c->fd, v, n);
        if (w < 0) { if (errno == EAGAIN) { if (!c->sending) { c->sending = 1; want(c, EPOLLIN | EPOLLOUT); } return; } perror("write"); exit(2); }
        c->off += w; bout += w;
    }
    if (c->sending) { c->sending = 0; want(c, EPOLLIN); }
}
static void start(conn *c) {
    char p[384];
    if (ntargets) snprintf(p, sizeof p, "%s", targets[counter++ % ntargets]);
    else snprintf(p, sizeof p, path, first + counter++ % keys);
    c->body = bodybuf + counter % nbodies * body;
    c->ohl = body ? snprintf(c->oh, sizeof c->oh, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %ld\r\n%s\r\n", method, p, body, extra)
                  : snprintf(c->oh, sizeof c->oh, "%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n", method, p, extra);
    c->off = 0; c->hlen = 0; c->left = -1; c->t0 = now(); push(c);
}
static void finish(conn *c) {
    done++; if (c->status / 100 != 2) bad++;
    if (nlat < 4000000) lat[nlat++] = now() - c->t0;
    start(c);
}
static void readable(conn *c) {
    for (;;) {
        ssize_t n;
        if (c->left < 0) {
            n = recv(c->fd, c->h + c->hlen, sizeof c->h - 1 - c->hlen, 0);
            if (n <= 0) { if (n < 0 && errno == EAGAIN) return; fprintf(stderr, "closed by peer\n"); exit(3); }
            bin += n; c->hlen += n; c->h[c->hlen] = 0;
            char *e = strstr(c->h, "\r\n\r\n"); if (!e) { if (c->hlen > 8000) exit(4); continue; }
            c->status = atoi(c->h + 9); char *cl = strcasestr(c->h, "content-length:");
            if (c->status == 204) { finish(c); return; }
            if (!cl || cl > e) { fprintf(stderr, "no content-length: %.200s\n", c->h); exit(5); }
            c->left = atol(cl + 15) - (c->hlen - (e + 4 - c->h));
            if (c->left == 0) { finish(c); return; }
        } else {
            size_t w = c->left < (long)sizeof rbuf ? c->left : sizeof rbuf;
            n = recv(c->fd, rbuf, w, trunc_ ? MSG_TRUNC : 0);
            if (n <= 0) { if (n < 0 && errno == EAGAIN) return; fprintf(stderr, "closed by peer\n"); exit(3); }
            bin += n; c->left -= n; if (c->left == 0) { finish(c); return; }
            if ((size_t)n < w) return;
        }
    }
}
static char *slurp(const char *name, long *size) {
    FILE *f = fopen(name, "rb"); if (!f) { perror(name); exit(1); }
    fseek(f, 0, SEEK_END); *size = ftell(f); rewind(f);
    char *b = malloc(*size + 1); if (fread(b, 1, *size, f) != (size_t)*size) { perror(name); exit(1); }
    b[*size] = 0; fclose(f); return b;
}
static void read_targets(const char *name) {
    long size; char *b = slurp(name, &size);
    for (char *line = strtok(b, "\n"); line; line = strtok(NULL, "\n")) {
        targets = realloc(targets, (ntargets + 1) * sizeof *targets); targets[ntargets++] = line;
    }
}
static int cmpf(const void *a, const void *b) { float x = *(float *)a, y = *(float *)b; return (x > y) - (x < y); }
int main(int ac, char **av) {
    int o, n = 16, rnd = 0; double dur = 3;
    while ((o = getopt(ac, av, "p:c:d:m:s:k:b:f:T:tRH:N:")) != -1) switch (o) {
        case 'p': port = atoi(optarg); break; case 'c': n = atoi(optarg); break; case 'd': dur = atof(optarg); break;
        case 'm': method = optarg; break; case 's': body = atol(optarg); break; case 'k': keys = atol(optarg); break;
        case 'b': first = atol(optarg); break; case 'f': bodybuf = slurp(optarg, &body); break; case 'T': read_targets(optarg); break;
        case 't': trunc_ = 1; break; case 'R': rnd = 1; break; case 'N': nbodies = atol(optarg); break;
        case 'H': if (asprintf(&extra, "%s\r\n", optarg) < 0) return 1; break; }
    body /= nbodies;
    path = optind < ac ? av[optind] : "/"; lat = malloc(4000000 * sizeof(float));
    if (body && !bodybuf) { bodybuf = malloc(body); unsigned x = 1; for (long i = 0; i < body; i++) { x = x * 1664525 + 1013904223; bodybuf[i] = rnd ? x >> 24 : 'x'; } }
    ep = epoll_create1(0); conn *cs = calloc(n, sizeof(conn));
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < n; i++) {
        conn *c = cs + i; c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); return 1; }
        int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    }
    double t0 = now(), end = t0 + dur, t; for (int i = 0; i < n; i++) start(cs + i);
    struct epoll_event ev[256];
    while ((t = now()) < end) {
        int k = epoll_wait(ep, ev, 256, 100);
        for (int i = 0; i < k; i++) { conn *c = ev[i].data.ptr; if (ev[i].events & EPOLLOUT) push(c); if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c); }
    }
    double s = now() - t0; qsort(lat, nlat, sizeof(float), cmpf); struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    double cpu = ru.ru_utime.tv_sec + ru.ru_stime.tv_sec + (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * 1e-6;
    printf("{\"requests\":%ld,\"bad\":%ld,\"seconds\":%.4f,\"rps\":%.2f,\"mb_in\":%.2f,\"mb_out\":%.2f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"client_cpu\":%.3f}\n",
           done, bad, s, done / s, bin / s / 1e6, bout / s / 1e6, nlat ? lat[nlat / 2] * 1e3 : 0, nlat ? lat[nlat * 99 / 100] * 1e3 : 0, cpu);
    return 0;
}
