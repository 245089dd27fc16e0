/* replay - play back pre-built HTTP/1.1 requests on N keep-alive connections.
 *
 * Requests (signatures and all) are built ahead of time by load.py, so this
 * program only copies bytes, parses the response framing, counts and times.
 * One thread, epoll; response bodies that are not to be checked are dropped in
 * the kernel (MSG_TRUNC), so that one core can drain several GB/s.
 *
 * usage: replay HOST PORT REQFILE POOLFILE [--seq F] [--conns N] [--secs S]
 *               [--warmup W] [--loop] [--max N] [--verify K]
 *               [--errors-to F] [--done-to F]
 *
 * Prints "START" on stdout when the warm-up is over, "END" when the last
 * counted response is in, then one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAXCONN 1024
#define HBUF 65536
#define NCLASS 8
#define DISCARD (4u << 20)

/* one record of the request file, little endian, 40 bytes + head bytes */
struct rec {
    uint32_t head_len;
    uint8_t is_head;      /* response carries no body */
    uint8_t cls;          /* class for per-kind figures */
    uint16_t expect;      /* exact status wanted; 0: any 2xx */
    uint64_t body_off, body_len;  /* request body: a range of the pool */
    int64_t expect_len;   /* response body length; -1: any */
    int64_t verify_off;   /* response body = pool[verify_off:]; -1: unknown */
    const uint8_t *head;
};

enum st { S_IDLE, S_SEND, S_HEAD, S_BODY_LEN, S_BODY_CHUNK, S_BODY_EOF, S_DEAD };

struct conn {
    int fd;
    enum st st;
    const struct rec *r;
    uint32_t ridx;
    uint64_t sent;
    double t0, tfb;
    char hb[HBUF];
    uint32_t hn;
    int status;
    int keep;
    int64_t clen;
    int64_t left;
    int64_t got;
    int verify;
    int bad;
    int counted;
    int armed_out;
    /* chunked */
    int cst;
    int64_t cleft;
    uint64_t served;
};

static struct rec *recs;
static uint32_t nrecs;
static const uint8_t *pool;
static uint64_t pool_len;
static uint32_t *seq;
static uint64_t nseq;
static struct sockaddr_in addr;
static int ep;
static int quickack = 1, nconn = 16, loop_ = 0, verify_every = 100;
static double secs = 3, warmup = 0.5;
static uint64_t max_req = 0, next_i = 0, issued = 0;
static double t_begin, t_start, t_last;
static int started, stopping;
static uint64_t ops, errs, ok_all, reconnects, bytes_in, bytes_out, wrapped;
static uint64_t status_n[1000], verified, mismatched, badlen, io_err, stuck;
static uint64_t cls_ops[NCLASS], cls_err[NCLASS];
static uint32_t *lat[NCLASS];
static uint64_t lat_n[NCLASS], lat_cap[NCLASS];
static uint32_t *fb;
static uint64_t fb_n, fb_cap;
static uint8_t *done_map;
static FILE *errf;
static int err_lines;
static uint8_t buf[1 << 18];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *m)
{
    fprintf(stderr, "replay: %s: %s\n", m, strerror(errno));
    exit(2);
}

static void push(uint32_t **a, uint64_t *n, uint64_t *cap, double s)
{
    if (*n == *cap) {
        *cap = *cap ? *cap * 2 : 65536;
        *a = realloc(*a, *cap * sizeof **a);
        if (!*a) die("realloc");
    }
    double us = s * 1e6;
    (*a)[(*n)++] = us > 4e9 ? 4000000000u : (uint32_t)us;
}

static const uint8_t *map(const char *p, uint64_t *len)
{
    int fd = open(p, O_RDONLY);
    struct stat sb;
    if (fd < 0 || fstat(fd, &sb)) die(p);
    *len = sb.st_size;
    void *m = sb.st_size ? mmap(0, sb.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0) : (void *)"";
    if (m == MAP_FAILED) die(p);
    close(fd);
    return m;
}

static void arm(struct conn *c, int out)
{
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    if (c->armed_out == out) return;
    c->armed_out = out;
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

static int connect_one(struct conn *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; connect(c->fd, (void *)&addr, sizeof addr); i++) {
        if (i > 50) return -1;
        usleep(20000);
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    c->armed_out = 0;
    c->served = 0;
    if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
    return 0;
}

static void reconnect(struct conn *c)
{
    close(c->fd);
    reconnects++;
    if (connect_one(c)) { c->st = S_DEAD; io_err++; }
}

static void finish(struct conn *c, int failed);

static int do_send(struct conn *c)
{
    const struct rec *r = c->r;
    uint64_t total = r->head_len + r->body_len;
    while (c->sent < total) {
        struct iovec v[2];
        int n = 0;
        if (c->sent < r->head_len) {
            v[n].iov_base = (void *)(r->head + c->sent);
            v[n++].iov_len = r->head_len - c->sent;
            if (r->body_len) {
                v[n].iov_base = (void *)(pool + r->body_off);
                v[n++].iov_len = r->body_len > (1u << 20) ? (1u << 20) : r->body_len;
            }
        } else {
            uint64_t o = c->sent - r->head_len, l = r->body_len - o;
            v[n].iov_base = (void *)(pool + r->body_off + o);
            v[n++].iov_len = l > (1u << 20) ? (1u << 20) : l;
        }
        struct msghdr m = {.msg_iov = v, .msg_iovlen = n};
        ssize_t k = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (k < 0) {
            if (errno == EAGAIN) { arm(c, 1); return 0; }
            return -1;
        }
        c->sent += k;
    }
    arm(c, 0);
    c->st = S_HEAD;
    return 0;
}

static void issue(struct conn *c)
{
    for (int tries = 0; tries < 3; tries++) {
        if (stopping || (max_req && next_i >= max_req) || (!loop_ && next_i >= nseq)) {
            c->st = S_IDLE;
            return;
        }
        uint64_t i = next_i++;
        if (i >= nseq) wrapped++;
        c->ridx = seq[i % nseq];
        c->r = &recs[c->ridx];
        c->sent = 0;
        c->hn = 0;
        c->got = 0;
        c->bad = 0;
        c->tfb = 0;
        c->verify = verify_every && c->r->verify_off >= 0 && i % verify_every == 0;
        c->counted = started;
        issued += started;
        c->t0 = now();
        c->st = S_SEND;
        if (!do_send(c)) return;
        /* a keep-alive connection the server had closed: once more on a new one */
        next_i--;
        reconnect(c);
        if (c->st == S_DEAD) return;
    }
    c->st = S_DEAD;
    io_err++;
}

static void finish(struct conn *c, int failed)
{
    double t = now();
    const struct rec *r = c->r;
    int good = !failed && !c->bad &&
               (r->expect ? c->status == r->expect : c->status >= 200 && c->status < 300);
    if (!failed && good && r->expect_len >= 0 && !r->is_head && c->got != r->expect_len) {
        badlen++;
        good = 0;
    }
    if (good && r->is_head && r->expect_len >= 0 && c->clen != r->expect_len) {
        badlen++;
        good = 0;
    }
    if (good) {
        ok_all++;
        if (done_map) done_map[c->ridx] = 1;
    } else if (errf && err_lines < 20) {
        err_lines++;
        fprintf(errf, "req %u status %d got %lld want %lld io %d\n%.*s\n", c->ridx,
                failed ? 0 : c->status, (long long)c->got, (long long)r->expect_len, failed,
                (int)(c->hn > 1200 ? 1200 : c->hn), c->hb);
    }
    if (c->counted) {
        if (!failed) status_n[c->status % 1000]++; else io_err++;
        if (good) {
            ops++;
            cls_ops[r->cls % NCLASS]++;
            bytes_in += r->is_head ? 0 : c->got;
            bytes_out += r->body_len;
            int k = r->cls % NCLASS;
            push(&lat[k], &lat_n[k], &lat_cap[k], t - c->t0);
            if (c->tfb) push(&fb, &fb_n, &fb_cap, c->tfb - c->t0);
            if (c->verify) verified++;
        } else {
            errs++;
            cls_err[r->cls % NCLASS]++;
        }
        t_last = t;
    }
    c->served++;
    if (failed || !c->keep) reconnect(c);
    if (c->st != S_DEAD) issue(c);
}

/* The rest of a response is awaited: acknowledge what is here at once, so that a
 * server which writes head and body apart with Nagle on does not stall 40 ms. */
static void more(struct conn *c)
{
    int one = 1;
    if (quickack) setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
}

static void take(struct conn *c, const uint8_t *p, int64_t n)
{
    if (c->verify && !c->bad) {
        uint64_t o = c->r->verify_off + c->got;
        if (o + n > pool_len || memcmp(pool + o, p, n)) {
            c->bad = 1;
            mismatched++;
        }
    }
    c->got += n;
}

/* returns 1 when the chunked body is complete, -1 on a framing error */
static int chunk(struct conn *c, const uint8_t *p, int64_t n)
{
    while (n > 0) {
        switch (c->cst) {
        case 0: /* size line */
            if (*p == '\n') c->cst = c->cleft ? 2 : 5;
            else if (*p == ';') c->cst = 1;
            else if (*p != '\r') {
                int d = *p >= '0' && *p <= '9' ? *p - '0' : (*p | 32) >= 'a' && (*p | 32) <= 'f' ? (*p | 32) - 'a' + 10 : -1;
                if (d < 0) return -1;
                c->cleft = c->cleft * 16 + d;
            }
            p++; n--;
            break;
        case 1: /* extension */
            if (*p == '\n') c->cst = c->cleft ? 2 : 5;
            p++; n--;
            break;
        case 2: { /* data */
            int64_t k = n < c->cleft ? n : c->cleft;
            take(c, p, k);
            p += k; n -= k; c->cleft -= k;
            if (!c->cleft) c->cst = 3;
            break;
        }
        case 3: /* CRLF after data */
            if (*p == '\n') c->cst = 0;
            p++; n--;
            break;
        case 5: /* trailer: start of a line */
            if (*p == '\n') return 1;
            if (*p != '\r') c->cst = 6;
            p++; n--;
            break;
        case 6:
            if (*p == '\n') c->cst = 5;
            p++; n--;
            break;
        default: return -1;
        }
    }
    return 0;
}

static int parse_head(struct conn *c, uint32_t hlen)
{
    char *h = c->hb;
    if (hlen < 12 || memcmp(h, "HTTP/1.", 7)) return -1;
    c->status = atoi(h + 9);
    c->keep = h[7] == '1';
    if (c->status < 200 || c->status > 299) c->verify = 0;
    c->clen = -1;
    int chunked = 0;
    char *p = memchr(h, '\n', hlen), *end = h + hlen;
    while (p && ++p < end) {
        if (!strncasecmp(p, "content-length:", 15)) c->clen = strtoll(p + 15, 0, 10);
        else if (!strncasecmp(p, "transfer-encoding:", 18)) chunked = !!memmem(p, (char *)memchr(p, '\n', end - p) - p, "chunked", 7);
        else if (!strncasecmp(p, "connection:", 11)) {
            char *q = p + 11;
            while (*q == ' ') q++;
            if (!strncasecmp(q, "close", 5)) c->keep = 0;
            else if (!strncasecmp(q, "keep-alive", 10)) c->keep = 1;
        }
        p = memchr(p, '\n', end - p);
    }
    if (c->r->is_head || c->status == 204 || c->status == 304 || c->status < 200) { c->left = 0; c->st = S_BODY_LEN; }
    else if (chunked) { c->st = S_BODY_CHUNK; c->cst = 0; c->cleft = 0; }
    else if (c->clen >= 0) { c->st = S_BODY_LEN; c->left = c->clen; }
    else { c->st = S_BODY_EOF; c->keep = 0; }
    return 0;
}

static void on_read(struct conn *c)
{
    for (;;) {
        if (c->st == S_IDLE) { /* the server closed an idle connection */
            char x;
            ssize_t k = recv(c->fd, &x, 1, MSG_PEEK);
            if (k == 0 || (k < 0 && errno != EAGAIN)) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0); c->st = S_DEAD; }
            return;
        }
        if (c->st == S_SEND || c->st == S_HEAD) {
            ssize_t k = recv(c->fd, c->hb + c->hn, HBUF - 1 - c->hn, 0);
            if (k < 0 && errno == EAGAIN) { if (c->hn) more(c); return; }
            if (k <= 0) {
                if (c->hn == 0 && c->served > 0 && c->sent <= c->r->head_len + c->r->body_len && k <= 0 && c->tfb == 0) {
                    /* closed between two requests: not the server's error; again */
                    double t0 = c->t0;
                    reconnect(c);
                    if (c->st == S_DEAD) return;
                    c->sent = 0; c->st = S_SEND; c->t0 = t0;
                    if (do_send(c)) { finish(c, 1); }
                    return;
                }
                finish(c, 1);
                return;
            }
            if (!c->tfb) c->tfb = now();
            c->hn += k;
            c->hb[c->hn] = 0;
        again:;
            char *e = memmem(c->hb, c->hn, "\r\n\r\n", 4);
            if (!e) {
                if (c->hn >= HBUF - 1) { finish(c, 1); return; }
                continue;
            }
            uint32_t hlen = e + 4 - c->hb;
            int early = c->st == S_SEND;
            if (parse_head(c, hlen)) { finish(c, 1); return; }
            if (c->status == 100) { /* not asked for, but harmless */
                memmove(c->hb, c->hb + hlen, c->hn - hlen);
                c->hn -= hlen;
                c->st = early ? S_SEND : S_HEAD;
                goto again;
            }
            if (early) { c->keep = 0; c->bad = 1; } /* answered before the body was in */
            uint32_t rest = c->hn - hlen;
            uint8_t *b = (uint8_t *)c->hb + hlen;
            if (c->st == S_BODY_LEN) {
                if ((int64_t)rest > c->left) { finish(c, 1); return; }
                take(c, b, rest);
                c->left -= rest;
                if (!c->left) { finish(c, 0); return; }
            } else if (c->st == S_BODY_CHUNK) {
                int x = chunk(c, b, rest);
                if (x) { finish(c, x < 0); return; }
            } else take(c, b, rest);
        }
        if (c->st == S_BODY_LEN) {
            ssize_t k;
            if (c->verify) k = recv(c->fd, buf, c->left < (int64_t)sizeof buf ? c->left : (int64_t)sizeof buf, 0);
            else k = recv(c->fd, buf, c->left < DISCARD ? c->left : DISCARD, MSG_TRUNC);
            if (k < 0 && errno == EAGAIN) { more(c); return; }
            if (k <= 0) { finish(c, 1); return; }
            if (c->verify) take(c, buf, k); else c->got += k;
            c->left -= k;
            if (!c->left) { finish(c, 0); return; }
        } else if (c->st == S_BODY_CHUNK) {
            ssize_t k = recv(c->fd, buf, sizeof buf, 0);
            if (k < 0 && errno == EAGAIN) { more(c); return; }
            if (k <= 0) { finish(c, 1); return; }
            int x = chunk(c, buf, k);
            if (x) { finish(c, x < 0); return; }
        } else if (c->st == S_BODY_EOF) {
            ssize_t k = recv(c->fd, buf, sizeof buf, 0);
            if (k < 0 && errno == EAGAIN) { more(c); return; }
            if (k < 0) { finish(c, 1); return; }
            if (k == 0) { finish(c, 0); return; }
            take(c, buf, k);
        }
    }
}

static int cmp(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void pct(const char *name, uint32_t *a, uint64_t n)
{
    if (!n) { printf("\"%s\":null", name); return; }
    qsort(a, n, sizeof *a, cmp);
    double s = 0;
    for (uint64_t i = 0; i < n; i++) s += a[i];
#define P(q) (a[(uint64_t)((n - 1) * (q))] / 1000.0)
    printf("\"%s\":{\"n\":%llu,\"mean\":%.3f,\"p50\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}", name,
           (unsigned long long)n, s / n / 1000.0, P(.5), P(.95), P(.99), P(.999), a[n - 1] / 1000.0);
}

int main(int argc, char **argv)
{
    if (argc < 5) { fprintf(stderr, "usage: replay HOST PORT REQFILE POOLFILE [options]\n"); return 2; }
    const char *seqf = 0, *donef = 0;
    for (int i = 5; i < argc; i++) {
        const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(a, "--loop")) { loop_ = 1; continue; }
        if (!strcmp(a, "--no-quickack")) { quickack = 0; continue; }
        i++;
        if (!strcmp(a, "--seq")) seqf = v;
        else if (!strcmp(a, "--conns")) nconn = atoi(v);
        else if (!strcmp(a, "--secs")) secs = atof(v);
        else if (!strcmp(a, "--warmup")) warmup = atof(v);
        else if (!strcmp(a, "--max")) max_req = strtoull(v, 0, 10);
        else if (!strcmp(a, "--verify")) verify_every = atoi(v);
        else if (!strcmp(a, "--errors-to")) errf = fopen(v, "w");
        else if (!strcmp(a, "--done-to")) donef = v;
        else { fprintf(stderr, "replay: unknown option %s\n", a); return 2; }
    }
    if (secs > 120) secs = 120;
    if (nconn > MAXCONN) nconn = MAXCONN;
    uint64_t len, slen;
    const uint8_t *m = map(argv[3], &len);
    pool = map(argv[4], &pool_len);
    if (len < 8 || memcmp(m, "RPL1", 4)) { fprintf(stderr, "replay: bad request file\n"); return 2; }
    memcpy(&nrecs, m + 4, 4);
    recs = calloc(nrecs, sizeof *recs);
    const uint8_t *p = m + 8;
    for (uint32_t i = 0; i < nrecs; i++) {
        struct rec *r = &recs[i];
        if (p + 40 > m + len) { fprintf(stderr, "replay: short request file\n"); return 2; }
        memcpy(&r->head_len, p, 4);
        r->is_head = p[4];
        r->cls = p[5];
        memcpy(&r->expect, p + 6, 2);
        memcpy(&r->body_off, p + 8, 8);
        memcpy(&r->body_len, p + 16, 8);
        memcpy(&r->expect_len, p + 24, 8);
        memcpy(&r->verify_off, p + 32, 8);
        r->head = p + 40;
        p += 40 + r->head_len;
        if (r->body_off + r->body_len > pool_len || p > m + len) { fprintf(stderr, "replay: bad record %u\n", i); return 2; }
    }
    if (seqf) {
        seq = (uint32_t *)map(seqf, &slen);
        nseq = slen / 4;
        for (uint64_t i = 0; i < nseq; i++) if (seq[i] >= nrecs) { fprintf(stderr, "replay: bad sequence\n"); return 2; }
    } else {
        nseq = nrecs;
        seq = malloc(4 * (nseq + 1));
        for (uint64_t i = 0; i < nseq; i++) seq[i] = i;
    }
    if (!nseq) { fprintf(stderr, "replay: no requests\n"); return 2; }
    if (donef) done_map = calloc(nrecs, 1);
    addr.sin_family = AF_INET;
    addr.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &addr.sin_addr) != 1) { fprintf(stderr, "replay: give an IPv4 address\n"); return 2; }
    if ((ntohl(addr.sin_addr.s_addr) >> 24) != 127) { fprintf(stderr, "replay: loopback only\n"); return 2; }
    ep = epoll_create1(0);
    struct conn *cs = calloc(nconn, sizeof *cs);
    for (int i = 0; i < nconn; i++) if (connect_one(&cs[i])) die("connect");
    struct rusage ru0, ru1;
    t_begin = now();
    if (warmup <= 0) {
        started = 1;
        t_start = t_last = t_begin;
        printf("START\n"); fflush(stdout);
    }
    getrusage(RUSAGE_SELF, &ru0);
    for (int i = 0; i < nconn; i++) issue(&cs[i]);
    struct epoll_event ev[256];
    for (;;) {
        int busy = 0;
        for (int i = 0; i < nconn; i++) if (cs[i].st != S_IDLE && cs[i].st != S_DEAD) { busy = 1; break; }
        if (!busy) break;
        int n = epoll_wait(ep, ev, 256, 50);
        for (int i = 0; i < n; i++) {
            struct conn *c = ev[i].data.ptr;
            if (c->st == S_DEAD) continue;
            if ((ev[i].events & EPOLLOUT) && c->st == S_SEND) {
                if (do_send(c)) { if (!(ev[i].events & EPOLLIN)) { finish(c, 1); continue; } }
            }
            if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_read(c);
        }
        double t = now();
        if (!started && t - t_begin >= warmup) {
            started = 1;
            t_start = t_last = t;
            getrusage(RUSAGE_SELF, &ru0);
            printf("START\n"); fflush(stdout);
        }
        if (started && !stopping && t - t_start >= secs && (issued >= (uint64_t)nconn || t - t_start >= secs + 8)) stopping = 1;
        if (stopping && t - t_start >= secs + 23) { /* never hang */
            for (int i = 0; i < nconn; i++) if (cs[i].st != S_IDLE && cs[i].st != S_DEAD) stuck++;
            break;
        }
    }
    getrusage(RUSAGE_SELF, &ru1);
    if (!started) { printf("START\n"); t_start = t_begin; t_last = now(); }
    printf("END\n"); fflush(stdout);
    double el = t_last - t_start;
    if (el <= 0) el = 1e-9;
#define TV(a) ((a).tv_sec + (a).tv_usec * 1e-6)
    double cpu = TV(ru1.ru_utime) + TV(ru1.ru_stime) - TV(ru0.ru_utime) - TV(ru0.ru_stime);
    printf("{\"ops\":%llu,\"errors\":%llu,\"ok_all\":%llu,\"elapsed\":%.6f,\"ops_s\":%.3f,\"in_bytes\":%llu,\"out_bytes\":%llu,\"mb_s\":%.3f,",
           (unsigned long long)ops, (unsigned long long)errs, (unsigned long long)ok_all, el, ops / el,
           (unsigned long long)bytes_in, (unsigned long long)bytes_out, (bytes_in + bytes_out) / el / 1e6);
    printf("\"gen_cpu_s\":%.3f,\"reconnects\":%llu,\"io_errors\":%llu,\"bad_length\":%llu,\"verified\":%llu,\"mismatched\":%llu,\"wrapped\":%llu,\"stuck\":%llu,\"exhausted\":%s,\"status\":{",
           cpu, (unsigned long long)reconnects, (unsigned long long)io_err, (unsigned long long)badlen,
           (unsigned long long)verified, (unsigned long long)mismatched, (unsigned long long)wrapped, (unsigned long long)stuck,
           !stopping ? "true" : "false");
    int first = 1;
    for (int i = 0; i < 1000; i++) if (status_n[i]) { printf("%s\"%d\":%llu", first ? "" : ",", i, (unsigned long long)status_n[i]); first = 0; }
    printf("},\"classes\":{");
    uint64_t tot = 0;
    first = 1;
    for (int k = 0; k < NCLASS; k++) if (lat_n[k] || cls_err[k]) {
        char nm[8];
        snprintf(nm, sizeof nm, "%d", k);
        if (!first) printf(",");
        first = 0;
        if (lat_n[k]) pct(nm, lat[k], lat_n[k]); else printf("\"%s\":{\"n\":0,\"errors\":%llu}", nm, (unsigned long long)cls_err[k]);
        tot += lat_n[k];
    }
    printf("},");
    uint32_t *all = malloc(4 * (tot + 1));
    uint64_t o = 0;
    for (int k = 0; k < NCLASS; k++) if (lat_n[k]) { memcpy(all + o, lat[k], 4 * lat_n[k]); o += lat_n[k]; }
    pct("lat_ms", all, tot);
    printf(",");
    pct("ttfb_ms", fb, fb_n);
    printf("}\n");
    if (donef) {
        FILE *f = fopen(donef, "wb");
        if (f) { fwrite(done_map, 1, nrecs, f); fclose(f); }
    }
    return 0;
}
