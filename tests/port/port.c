/* The stages after the models, PaDiM's inference and what comes before it, in C99.

   A port of tiled_ref in one file with the standard library alone: it proves that the golden
   files and FORMAT.md suffice to write one. It reads cases.txt of a bundle, computes the stages
   it knows and writes their outputs.

       cc -std=c99 -O2 -o port port.c -lm
       ./port BUNDLE OUT         OUT must hold a folder for every stage
       ./port                    says which stages it knows

   -DBUG=n builds one of the mistakes listed in build.py, which the checker must find and name.

   One file because it shows how little a port needs. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef BUG
#define BUG 0
#endif

#define MAX_RANK 8
#define MAX_INPUTS 16
#define MAX_NAME 64

/* An array of any kind of number: a double holds each of them but large int64 exactly. */
typedef struct {
    char name[MAX_NAME];
    char dtype[4]; /* "<f4" and so on */
    int rank;
    long shape[MAX_RANK];
    long n;
    double *v;
} Array;

typedef struct {
    const char *bundle, *out;
    char stage[MAX_NAME], name[MAX_NAME];
    int n_inputs;
    Array inputs[MAX_INPUTS];
} Case;

static void fail(const char *what, const char *where) {
    fprintf(stderr, "port: %s: %s\n", what, where);
    exit(2);
}

static void *memory(long n, size_t size) {
    void *p = calloc(n > 0 ? (size_t)n : 1, size);
    if (!p) fail("no memory", "");
    return p;
}

/* ------------------------------------------------------------------ reading and writing */

static long count(Array *a) {
    a->n = 1;
    for (int k = 0; k < a->rank; k++) a->n *= a->shape[k];
    return a->n;
}

static double number(const unsigned char *p, const char *dtype) {
    int size = dtype[2] - '0';
    uint64_t bits = 0;
    for (int k = size - 1; k >= 0; k--) bits = bits << 8 | p[k]; /* little-endian */
    if (dtype[1] == 'f' && size == 4) {
        uint32_t half = (uint32_t)bits;
        float f;
        memcpy(&f, &half, 4);
        return f;
    }
    if (dtype[1] == 'f') {
        double d;
        memcpy(&d, &bits, 8);
        return d;
    }
    if (dtype[1] == 'i' && size == 4) return (int32_t)(uint32_t)bits;
    return dtype[1] == 'i' ? (double)(int64_t)bits : (double)bits;
}

static void read_npy(Array *a, const char *path) {
    unsigned char head[10];
    char text[4096], *p;
    FILE *file = fopen(path, "rb");
    if (!file || fread(head, 1, 10, file) != 10 || memcmp(head, "\x93NUMPY\1\0", 8))
        fail("no .npy file of version 1.0", path);
    size_t length = head[8] | (size_t)head[9] << 8;
    if (length >= sizeof text || fread(text, 1, length, file) != length) fail("header", path);
    text[length] = 0;
    p = strstr(text, "'descr': '");
    if (!p || !strstr(text, "'fortran_order': False")) fail("header", path);
    memcpy(a->dtype, p + 10, 3);
    a->dtype[3] = 0;
    p = strstr(text, "'shape': (");
    if (!p) fail("header", path);
    for (p += 10, a->rank = 0; *p != ')';) {
        a->shape[a->rank++] = strtol(p, &p, 10);
        while (*p == ',' || *p == ' ') p++;
    }
    int size = a->dtype[2] - '0';
    a->v = memory(count(a), sizeof(double));
    for (long k = 0; k < a->n; k++) {
        unsigned char bytes[8];
        if (fread(bytes, 1, (size_t)size, file) != (size_t)size) fail("too short", path);
        a->v[k] = number(bytes, a->dtype);
    }
    fclose(file);
}

static void write_npy(const Case *c, const char *name, const char *dtype, int rank,
                      const long *shape, const double *v) {
    char path[1024], header[256], sides[128] = "";
    long n = 1;
    for (int k = 0; k < rank; k++) {
        sprintf(sides + strlen(sides), k + 1 == rank && rank > 1 ? "%ld" : "%ld, ", shape[k]);
        n *= shape[k];
    }
    snprintf(path, sizeof path, "%s/%s/%s.out.%s.npy", c->out, c->stage, c->name, name);
    int length = snprintf(header, sizeof header,
                          "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", dtype, sides);
    while ((10 + length + 1) % 64) header[length++] = ' ';
    header[length++] = '\n';
    FILE *file = fopen(path, "wb");
    if (!file) fail("cannot write", path);
    fwrite("\x93NUMPY\1\0", 1, 8, file);
    fputc(length & 255, file);
    fputc(length >> 8, file);
    fwrite(header, 1, (size_t)length, file);
    for (long k = 0; k < n; k++) {
        int size = dtype[2] - '0';
        uint64_t bits;
        if (dtype[1] == 'f' && size == 4) {
            float f = (float)v[k];
            uint32_t half;
            memcpy(&half, &f, 4);
            bits = half;
        } else if (dtype[1] == 'f') {
            memcpy(&bits, &v[k], 8);
        } else {
            bits = (uint64_t)(int64_t)v[k];
        }
        for (int b = 0; b < size; b++) fputc((int)(bits >> 8 * b & 255), file);
    }
    if (fclose(file)) fail("cannot write", path);
}

/* One input line of cases.txt: "name path", or "name dtype rank sides... values...". */
static void read_input(Case *c, Array *a, FILE *file) {
    char word[512], path[1024];
    if (fscanf(file, "%63s %511s", a->name, word) != 2) fail("cases.txt is cut off", c->name);
    if (strchr(word, '/')) {
        snprintf(path, sizeof path, "%s/%s", c->bundle, word);
        if (strstr(word, ".npy")) read_npy(a, path);
        return; /* weights and image files are of no interest to this port */
    }
    memcpy(a->dtype, word, 3);
    a->dtype[3] = 0;
    if (fscanf(file, "%d", &a->rank) != 1) fail("cases.txt is cut off", c->name);
    for (int k = 0; k < a->rank; k++)
        if (fscanf(file, "%ld", &a->shape[k]) != 1) fail("cases.txt is cut off", c->name);
    a->v = memory(count(a), sizeof(double));
    for (long k = 0; k < a->n; k++) { /* strtod reads Infinity and NaN as well */
        if (fscanf(file, "%511s", word) != 1) fail("cases.txt is cut off", c->name);
        a->v[k] = strtod(word, NULL);
    }
}

static Array *input(Case *c, const char *name) {
    for (int k = 0; k < c->n_inputs; k++)
        if (!strcmp(c->inputs[k].name, name)) return &c->inputs[k];
    fail("no input", name);
    return NULL;
}

/* A sum or product of two floats computed in double and rounded once is the float result. */
static double rounded(double x, const char *dtype) { return dtype[2] == '4' ? (float)x : x; }

static long least(long a, long b) { return a < b ? a : b; }

/* ------------------------------------------------------------------------- tiles */

typedef struct {
    long H, W, h, w, sh, sw, rows, cols;
} Grid;

static Grid grid_of(Case *c) {
    const double *g = input(c, "grid")->v;
    Grid grid = {(long)g[0], (long)g[1], (long)g[2], (long)g[3], (long)g[4], (long)g[5], 0, 0};
    grid.rows = (grid.H - grid.h + grid.sh - 1) / grid.sh + 1;
    grid.cols = (grid.W - grid.w + grid.sw - 1) / grid.sw + 1;
    return grid;
}

static void tile(Case *c) {
    Grid g = grid_of(c);
    Array *x = input(c, "images");
    long n = x->shape[0] * x->shape[1];
    long shape[6] = {g.rows, g.cols, x->shape[0], x->shape[1], g.h, g.w};
    double *out = memory(g.rows * g.cols * n * g.h * g.w, sizeof(double)), *p = out;
    for (long i = 0; i < g.rows; i++)
        for (long j = 0; j < g.cols; j++)
            for (long k = 0; k < n; k++)
                for (long y = 0; y < g.h; y++)
                    for (long a = 0; a < g.w; a++, p++) {
                        long top = i * g.sh + y, left = j * g.sw + a;
#if BUG == 1
                        top = i * g.h + y, left = j * g.w + a;
#elif BUG == 2
                        top = least(top, g.H - 1), left = least(left, g.W - 1);
#endif
                        if (top < g.H && left < g.W) *p = x->v[(k * g.H + top) * g.W + left];
                    }
    write_npy(c, "tiles", x->dtype, 6, shape, out);
    free(out);
}

static void untile(Case *c) {
    Grid g = grid_of(c);
    Array *maps = input(c, "maps");
    long n = maps->shape[2], shape[3] = {n, g.H, g.W};
    double *out = memory(n * g.H * g.W, sizeof(double));
    double *part = memory(g.rows * g.cols, sizeof(double));
    long step_y = g.sh, step_x = g.sw;
#if BUG == 3
    step_y = g.h, step_x = g.w;
#endif
    for (long k = 0; k < n; k++)
        for (long y = 0; y < g.H; y++)
            for (long x = 0; x < g.W; x++) {
                long m = 0;
                for (long i = 0; i < g.rows; i++)
                    for (long j = 0; j < g.cols; j++) {
                        long a = y - i * step_y, b = x - j * step_x, t = i * g.cols + j;
#if BUG == 4
                        t = j * g.rows + i;
#endif
                        if (a >= 0 && a < g.h && b >= 0 && b < g.w)
                            part[m++] = maps->v[((t * n + k) * g.h + a) * g.w + b];
                    }
                long covered = m;
#if BUG == 5
                for (long q = 1; q < m; q++) part[0] = fmax(part[0], part[q]);
                covered = m = 1;
#endif
                while (m > 1) { /* neighbours are added, then their sums, and so on */
                    long half = 0;
                    for (long q = 0; q + 1 < m; q += 2)
                        part[half++] = rounded(part[q] + part[q + 1], maps->dtype);
                    if (m % 2) part[half++] = part[m - 1];
                    m = half;
                }
#if BUG == 6
                covered = 1;
#endif
                if (covered)
                    out[(k * g.H + y) * g.W + x] = rounded(part[0] / (double)covered, maps->dtype);
            }
    write_npy(c, "map", maps->dtype, 3, shape, out);
    free(part);
    free(out);
}

static void mean_score(Case *c) {
    Array *s = input(c, "scores");
    long tiles = s->shape[0] * s->shape[1], n = s->shape[2];
    double *out = memory(n, sizeof(double));
    for (long k = 0; k < n; k++) {
        double total = s->v[k];
        for (long t = 1; t < tiles; t++) {
#if BUG == 7
            total = fmax(total, s->v[t * n + k]);
#else
            total += s->v[t * n + k];
#endif
        }
#if BUG == 7
        out[k] = total;
#else
        out[k] = total / (double)tiles;
#endif
    }
    write_npy(c, "score", s->dtype, 1, &n, out);
    free(out);
}

/* ---------------------------------------------------------------------- the seams */

static void band(char *line, long n, long tile_side, long stride, long tiles, double width) {
    long reach = (long)(width * (double)tile_side);
#if BUG == 8
    reach += 1;
#endif
    memset(line, 0, (size_t)n);
    for (long k = 0; k < tiles; k++)
        for (int end = 0; end < 2; end++) {
            long border = k * stride + end * tile_side;
#if BUG == 9
            border = k * stride;
#endif
            if (border > 0 && border < n)
                for (long y = border - reach; y < border + reach; y++)
                    if (y >= 0 && y < n) line[y] = 1;
        }
}

static char *bands(Case *c, Grid g) {
    char *rows = memory(g.H + g.W, 1);
    double width = input(c, "width")->v[0];
    band(rows, g.H, g.h, g.sh, g.rows, width);
    band(rows + g.H, g.W, g.w, g.sw, g.cols, width);
    return rows;
}

static void seam_mask(Case *c) {
    Grid g = grid_of(c);
    char *rows = bands(c, g);
    long shape[2] = {g.H, g.W};
    double *out = memory(g.H * g.W, sizeof(double));
    for (long y = 0; y < g.H; y++)
        for (long x = 0; x < g.W; x++) out[y * g.W + x] = rows[y] || rows[g.H + x];
    write_npy(c, "mask", "|b1", 2, shape, out);
    free(out);
    free(rows);
}

/* Weights of the centre and of distances 1 to radius; returns the radius. */
static long gaussian(double sigma, const char *dtype, double **taps) {
    long radius = (long)(4.0 * sigma + 0.5);
#if BUG == 10
    radius = (long)(3.0 * sigma + 0.5);
#endif
    double *w = memory(radius + 1, sizeof(double)), total = 0.0;
    for (long k = radius; k >= 0; k--) {
        w[k] = exp(-(double)(k * k) / (2.0 * sigma * sigma));
        total += k ? 2.0 * w[k] : w[k];
    }
    for (long k = 0; k <= radius; k++) w[k] = rounded(w[k] / total, dtype);
    *taps = w;
    return radius;
}

static long mirrored(long i, long n) {
#if BUG == 11
    i = (i % (2 * n) + 2 * n) % (2 * n);
    return i < n ? i : 2 * n - 1 - i;
#else
    if (n == 1) return 0;
    i = (i % (2 * n - 2) + 2 * n - 2) % (2 * n - 2);
    return i < n ? i : 2 * n - 2 - i;
#endif
}

/* One pass of the blur over n samples that lie `step` apart. */
static void blur_line(const double *from, double *to, long n, long step, const double *taps,
                      long radius, const char *dtype) {
    for (long i = 0; i < n; i++) {
        double total = rounded(taps[0] * from[i * step], dtype);
        for (long k = 1; k <= radius; k++) {
            double pair = rounded(
                from[mirrored(i - k, n) * step] + from[mirrored(i + k, n) * step], dtype);
            total = rounded(total + rounded(taps[k] * pair, dtype), dtype);
        }
        to[i * step] = total;
    }
}

static void blur(const double *map, double *out, long H, long W, double sigma, const char *dtype) {
    double *taps, *down = memory(H * W, sizeof(double));
    long radius = gaussian(sigma, dtype, &taps);
    for (long x = 0; x < W; x++) blur_line(map + x, down + x, H, W, taps, radius, dtype);
    for (long y = 0; y < H; y++) blur_line(down + y * W, out + y * W, W, 1, taps, radius, dtype);
    free(down);
    free(taps);
}

static void smoothing(Case *c) {
    Grid g = grid_of(c);
    Array *maps = input(c, "maps");
    char *rows = bands(c, g);
    double *out = memory(maps->n, sizeof(double));
    for (long k = 0; k < maps->shape[0]; k++) {
        const double *map = maps->v + k * g.H * g.W;
        double *to = out + k * g.H * g.W;
        blur(map, to, g.H, g.W, input(c, "sigma")->v[0], maps->dtype);
#if BUG != 12
        for (long y = 0; y < g.H; y++)
            for (long x = 0; x < g.W; x++)
                if (!rows[y] && !rows[g.H + x]) to[y * g.W + x] = map[y * g.W + x];
#endif
    }
    write_npy(c, "maps", maps->dtype, 3, maps->shape, out);
    free(out);
    free(rows);
}

/* ------------------------------------------------------- thresholds and normalisation */

typedef struct {
    double score;
    long place;
} Ranked;

static int falling(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Whether there is no order: without scores, or with a NaN among them. */
static int unranked(const Array *scores) {
    long nans = 0;
    for (long k = 0; k < scores->n; k++) nans += isnan(scores->v[k]) != 0;
    return nans > 0 || scores->n == 0;
}

/* NULL where there is no order. */
static Ranked *ranked(const Array *scores) {
    if (unranked(scores)) return NULL;
    Ranked *r = memory(scores->n, sizeof(Ranked));
    for (long k = 0; k < scores->n; k++) r[k].score = scores->v[k], r[k].place = k;
    qsort(r, (size_t)scores->n, sizeof(Ranked), falling);
    return r;
}

static void threshold(Case *c) {
    Array *s = input(c, "scores"), *labels = input(c, "labels");
    Ranked *r = ranked(s);
    long positives = 0, hits = 0;
    for (long k = 0; k < s->n; k++) positives += labels->v[k] > 0;
    double best = r && positives ? -1.0 : NAN, found = r ? r[0].score : NAN;
    for (long k = 0; k < s->n && r && positives; k++) { /* from the highest score down */
        hits += labels->v[r[k].place] > 0;
        if (k + 1 < s->n && r[k + 1].score == r[k].score) continue;
        double value = r[k].score, f1 = 2.0 * (double)hits / (double)(k + 1 + positives);
#if BUG == 13 /* what is above the threshold, without the threshold itself */
        if (k + 1 == s->n) continue;
        value = r[k + 1].score;
#endif
        if (f1 >= best) best = f1, found = value; /* the smallest of equally good ones */
    }
    write_npy(c, "threshold", "<f8", 0, NULL, &found);
    write_npy(c, "f1", "<f8", 0, NULL, &best);
    free(r);
}

static void normalisation(Case *c) {
    Array *x = input(c, "values");
    double middle = input(c, "threshold")->v[0], low = input(c, "minimum")->v[0];
    double range = input(c, "maximum")->v[0] - low;
    double *out = memory(x->n, sizeof(double));
#if BUG == 14
    middle = low;
#endif
    for (long k = 0; k < x->n; k++) {
        double d = x->v[k] - middle;
        d = range == 0 ? ((d > 0) - (d < 0)) * 0.5 : d / range;
#if BUG != 14
        d += 0.5;
#else
        if (range == 0) d += 0.5;
#endif
        out[k] = fmin(fmax(d, 0.0), 1.0);
    }
    write_npy(c, "values", x->dtype, x->rank, x->shape, out);
    free(out);
}

/* -------------------------------------------------------------------------- metrics */

/* Numbers the 8-connected regions in the order of their first pixels; returns how many. */
static long label(const Array *masks, long *labels) {
    long H = masks->shape[1], W = masks->shape[2], found = 0, depth;
    long *stack = memory(masks->n, sizeof(long));
    for (long k = 0; k < masks->n; k++) labels[k] = 0;
    for (long k = 0; k < masks->n; k++) {
        if (masks->v[k] == 0 || labels[k]) continue;
        labels[k] = ++found;
        stack[0] = k;
        depth = 1;
        while (depth) {
            long at = stack[--depth], image = at / (H * W), y = at / W % H, x = at % W;
            for (long dy = -1; dy <= 1; dy++)
                for (long dx = -1; dx <= 1; dx++) {
                    long a = y + dy, b = x + dx, there = (image * H + a) * W + b;
#if BUG == 15
                    if (dy && dx) continue;
#endif
                    if (a < 0 || a >= H || b < 0 || b >= W) continue;
                    if (masks->v[there] == 0 || labels[there]) continue;
                    labels[there] = found;
                    stack[depth++] = there;
                }
        }
    }
    free(stack);
    return found;
}

static void regions(Case *c) {
    Array *masks = input(c, "masks");
    long *labels = memory(masks->n, sizeof(long));
    double *out = memory(masks->n, sizeof(double));
    label(masks, labels);
    for (long k = 0; k < masks->n; k++) out[k] = (double)labels[k];
    write_npy(c, "labels", "<i4", 3, masks->shape, out);
    free(out);
    free(labels);
}

static void auroc(Case *c) {
    Array *s = input(c, "scores"), *labels = input(c, "labels");
    double won = 0.0, pairs = 0.0, tie = 0.5;
#if BUG == 16
    tie = 0.0;
#endif
    for (long a = 0; a < s->n; a++)
        for (long b = 0; b < s->n; b++)
            if (labels->v[a] != 0 && labels->v[b] == 0) {
                pairs += 1;
                won += s->v[a] > s->v[b] ? 1.0 : s->v[a] == s->v[b] ? tie : 0.0;
            }
    won = unranked(s) ? NAN : won / pairs; /* without a pair 0 / 0 */
    write_npy(c, "auroc", "<f8", 0, NULL, &won);
}

static void aupro(Case *c) {
    Array *maps = input(c, "maps"), *masks = input(c, "masks");
    double limit = input(c, "fpr_limit")->v[0], normal = 0.0;
    long *labels = memory(masks->n, sizeof(long)), n = label(masks, labels);
    double *area = memory(n + 1, sizeof(double));
    for (long k = 0; k < masks->n; k++) {
        area[labels[k]] += 1;
        normal += masks->v[k] == 0;
    }
#if BUG == 17
    normal = (double)masks->n;
#endif
    Ranked *r = ranked(maps);
    double false_pixels = 0, height = 0, x = 0, y = 0, total = 0;
    for (long k = 0; k < maps->n && r; k++) {
        long region = labels[r[k].place];
        if (region)
            height += 1 / (area[region] * (double)n);
        else
            false_pixels += 1;
#if BUG != 18
        if (k + 1 < maps->n && r[k + 1].score == r[k].score) continue; /* one curve point */
#endif
        double new_x = false_pixels / normal;
        if (new_x > limit) { /* linear in between, up to the limit */
            double at_limit = y + (height - y) * (limit - x) / (new_x - x);
            total += (limit - x) * (y + at_limit) / 2;
            x = limit;
            break;
        }
        total += (new_x - x) * (y + height) / 2;
        x = new_x, y = height;
    }
#if BUG != 19
    total /= limit;
#endif
    if (!r || !n || !area[0]) total = NAN;
    write_npy(c, "aupro", "<f8", 0, NULL, &total);
    free(r);
    free(area);
    free(labels);
}

/* ------------------------------------------------------------- before the models */

/* Bilinear interpolation of n_in samples at place i of n_out: the lower of the two samples
   beside it, and the weight of the upper one. */
static void bilinear(long i, long n_in, long n_out, long *low, double *part) {
    double at = ((double)i + 0.5) * ((double)n_in / (double)n_out) - 0.5;
#if BUG == 20
    at = n_out > 1 ? (double)i * (double)(n_in - 1) / (double)(n_out - 1) : 0.0;
#endif
    if (at < 0) at = 0;
    *low = least((long)at, n_in - 1);
    *part = at - (double)*low; /* where there is no upper sample the lower one counts twice */
}

static double to_even(double x) {
    double low = floor(x), rest = x - low;
    if (rest == 0.5) return fmod(low, 2.0) == 0.0 ? low : low + 1;
    return floor(x + 0.5);
}

#if BUG == 21 /* antialias: a wider triangle of weights when shrinking */
static double sample(const Array *im, long y, long x, long H, long W, long channel) {
    double sy = fmax(1.0, (double)im->shape[0] / (double)H), total = 0, weights = 0;
    double sx = fmax(1.0, (double)im->shape[1] / (double)W);
    double cy = ((double)y + 0.5) * (double)im->shape[0] / (double)H - 0.5;
    double cx = ((double)x + 0.5) * (double)im->shape[1] / (double)W - 0.5;
    for (long a = 0; a < im->shape[0]; a++)
        for (long b = 0; b < im->shape[1]; b++) {
            double w = fmax(0, 1 - fabs((double)a - cy) / sy)
                     * fmax(0, 1 - fabs((double)b - cx) / sx);
            weights += w;
            total += w * im->v[(a * im->shape[1] + b) * 3 + channel];
        }
    return total / weights;
}
#else
/* Pixel x, from n to m: the two pixels of n and their integer weights. */
static void integer_taps(long x, long n, long m, int columns, long at[2], long weight[2]) {
    double scale = 1 / ((double)m / (double)n);
    float f = (float)(((double)x + 0.5) * scale - 0.5);
#if BUG == 20
    f = m > 1 ? (float)((double)x * (double)(n - 1) / (double)(m - 1)) : 0.0f;
#endif
    long i = (long)floor((double)f);
    f -= (float)i;
    if (columns && (i < 0 || i >= n - 1)) f = 0;
    for (int k = 0; k < 2; k++) at[k] = i + k < 0 ? 0 : least(i + k, n - 1);
    weight[0] = (long)to_even(2048 * (double)(1 - f));
    weight[1] = (long)to_even(2048 * (double)f);
}

static double sample(const Array *im, long y, long x, long H, long W, long channel) {
    long row[2], b[2], column[2], a[2], w = im->shape[1];
    long total = BUG == 28 ? 0 : 2;
    integer_taps(y, im->shape[0], H, 0, row, b);
    integer_taps(x, w, W, 1, column, a);
    for (int k = 0; k < 2; k++) {
        long left = (long)im->v[(row[k] * w + column[0]) * 3 + channel];
        long right = (long)im->v[(row[k] * w + column[1]) * 3 + channel];
        long sum = left * a[0] + right * a[1];
        total += b[k] * (sum >> 4) >> 16;
    }
    return (double)(total >> 2);
}
#endif

static void resize(Case *c) {
    Array *im = input(c, "image"), *size = input(c, "size");
    long H = (long)size->v[0], W = (long)size->v[1], shape[3] = {H, W, 3};
    double *out = memory(H * W * 3, sizeof(double));
    for (long k = 0; k < H * W * 3; k++)
        out[k] = to_even(sample(im, k / 3 / W, k / 3 % W, H, W, k % 3));
    write_npy(c, "image", "|u1", 3, shape, out);
    free(out);
}

static void normalise(Case *c) {
    static const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
    Array *x = input(c, "images");
    long area = x->shape[2] * x->shape[3];
    double *out = memory(x->n, sizeof(double));
    for (long k = 0; k < x->n; k++) {
        long channel = k / area % 3;
#if BUG == 22
        channel = 2 - channel;
#endif
        float v = (float)x->v[k] / 255.0f;
        v = v - mean[channel];
        out[k] = v / std[channel];
    }
    write_npy(c, "images", "<f4", 4, x->shape, out);
    free(out);
}

/* ---------------------------------------------------------------------------- PaDiM */

static void padim_embedding(Case *c) {
    static const char *names[3] = {"layer1", "layer2", "layer3"};
    Array *chosen = input(c, "channels"), *finest = input(c, "layer1");
    long B = finest->shape[0], hf = finest->shape[2], wf = finest->shape[3];
    long shape[4] = {B, chosen->n, hf, wf};
    double *out = memory(B * chosen->n * hf * wf, sizeof(double)), *p = out;
    for (long b = 0; b < B; b++)
        for (long d = 0; d < chosen->n; d++) {
            long channel = (long)chosen->v[d], layer = 0;
            while (channel >= input(c, names[layer])->shape[1])
                channel -= input(c, names[layer++])->shape[1];
            Array *x = input(c, names[layer]);
            long h = x->shape[2], w = x->shape[3];
            const double *map = x->v + (b * x->shape[1] + channel) * h * w;
            for (long y = 0; y < hf; y++)
                for (long a = 0; a < wf; a++, p++) {
#if BUG == 23
                    long top, left;
                    double v, u;
                    bilinear(y, h, hf, &top, &v);
                    bilinear(a, w, wf, &left, &u);
                    long below = least(top + 1, h - 1), right = least(left + 1, w - 1);
                    *p = (1 - v) * ((1 - u) * map[top * w + left] + u * map[top * w + right])
                       + v * ((1 - u) * map[below * w + left] + u * map[below * w + right]);
#else
                    *p = map[y * h / hf * w + a * w / wf];
#endif
                }
        }
    write_npy(c, "embedding", "<f4", 4, shape, out);
    free(out);
}

/* Of a covariance a (n x n): the triangle u with inverse(a) = u u^T, packed row by row. In a, C of
   Cholesky takes the place of a, and its inverse that of C, row by row. */
static void factor(double *a, long n, double *u) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j <= i; j++) {
            double sum = a[i * n + j];
            for (long k = 0; k < j; k++) sum -= a[i * n + k] * a[j * n + k];
            a[i * n + j] = i == j ? sqrt(sum) : sum / a[j * n + j];
        }
    for (long i = 0; i < n; i++) {
        for (long j = 0; j < i; j++) {
            double sum = 0;
            for (long k = j; k < i; k++) sum -= a[i * n + k] * a[k * n + j];
            a[i * n + j] = sum / a[i * n + i];
        }
        a[i * n + i] = 1 / a[i * n + i];
    }
    for (long i = 0; i < n; i++)
        for (long j = i; j < n; j++) *u++ = a[j * n + i];
}

static void padim_parameters(Case *c) {
    Array *x = input(c, "embedding");
    long N = x->shape[0], D = x->shape[1], P = x->shape[2] * x->shape[3];
    long size = D * (D + 1) / 2, shape[2] = {P, D}, packed[2] = {P, size}, less = 1;
    double *mean = memory(P * D, sizeof(double)), *factors = memory(P * size, sizeof(double));
    double *s = memory(D * D, sizeof(double));
#if BUG == 24
    less = 0;
#endif
    for (long p = 0; p < P; p++) {
        double *m = mean + p * D;
        memset(s, 0, (size_t)(D * D) * sizeof(double));
        for (long n = 0; n < N; n++)
            for (long i = 0; i < D; i++) m[i] += x->v[(n * D + i) * P + p] / (double)N;
        for (long n = 0; n < N; n++)
            for (long i = 0; i < D; i++)
                for (long j = 0; j < D; j++)
                    s[i * D + j] += (x->v[(n * D + i) * P + p] - m[i])
                                  * (x->v[(n * D + j) * P + p] - m[j]) / (double)(N - less);
        for (long i = 0; i < D; i++) s[i * D + i] += 0.01;
        factor(s, D, factors + p * size);
    }
    write_npy(c, "mean", "<f4", 2, shape, mean);
    write_npy(c, "factors", "<f4", 2, packed, factors);
    free(mean);
    free(factors);
    free(s);
}

static void padim_map(Case *c) {
    Array *x = input(c, "embedding"), *mean = input(c, "mean"), *factors = input(c, "factors");
    Array *size = input(c, "size");
    long B = x->shape[0], D = x->shape[1], hf = x->shape[2], wf = x->shape[3], P = hf * wf;
    long H = (long)size->v[0], W = (long)size->v[1];
    long small[3] = {B, hf, wf}, large[3] = {B, H, W};
    double *distance = memory(B * P, sizeof(double)), *map = memory(B * H * W, sizeof(double));
    double *wide = memory(H * W, sizeof(double));
    for (long b = 0; b < B; b++)
        for (long p = 0; p < P; p++) {
            double square = 0;
            long q = p;
#if BUG == 25
            q = p % wf * hf + p / wf;
#endif
            for (long j = 0; j < D; j++) {
                const double *u = factors->v + q * (D * (D + 1) / 2) + j;
                double y = 0;
                for (long i = 0; i <= j; i++, u += D - i)
                    y += *u * (x->v[(b * D + i) * P + p] - mean->v[q * D + i]);
                square += y * y;
            }
#if BUG == 26
            distance[b * P + p] = square;
#else
            distance[b * P + p] = sqrt(square);
#endif
        }
    for (long b = 0; b < B; b++) {
        const double *d = distance + b * P;
        for (long y = 0; y < H; y++)
            for (long a = 0; a < W; a++) {
                long top, left;
                double v, u;
                bilinear(y, hf, H, &top, &v);
                bilinear(a, wf, W, &left, &u);
                long below = least(top + 1, hf - 1), right = least(left + 1, wf - 1);
                wide[y * W + a] = (1 - v) * ((1 - u) * d[top * wf + left] + u * d[top * wf + right])
                                + v * ((1 - u) * d[below * wf + left] + u * d[below * wf + right]);
            }
        blur(wide, map + b * H * W, H, W, 4.0, "<f8");
    }
    write_npy(c, "distances", "<f4", 3, small, distance);
    write_npy(c, "map", "<f4", 3, large, map);
    free(wide);
    free(map);
    free(distance);
}

static void padim_score(Case *c) {
    Array *map = input(c, "map");
    long B = map->shape[0], area = map->n / B;
    double *out = memory(B, sizeof(double));
    for (long b = 0; b < B; b++) {
        out[b] = map->v[b * area];
#if BUG == 27
        out[b] = 0;
#endif
        for (long k = 0; k < area; k++) out[b] = fmax(out[b], map->v[b * area + k]);
    }
    write_npy(c, "score", map->dtype, 1, &B, out);
    free(out);
}

/* ----------------------------------------------------------------------------- main */

static const struct {
    const char *name;
    void (*run)(Case *);
} STAGES[] = {
    {"resize", resize},
    {"normalise", normalise},
    {"tile", tile},
    {"padim.embedding", padim_embedding},
    {"padim.parameters", padim_parameters},
    {"padim.map", padim_map},
    {"padim.score", padim_score},
    {"untile", untile},
    {"mean_score", mean_score},
    {"seam_mask", seam_mask},
    {"smoothing", smoothing},
    {"threshold", threshold},
    {"normalisation", normalisation},
    {"regions", regions},
    {"auroc", auroc},
    {"aupro", aupro},
};
static const int N_STAGES = sizeof STAGES / sizeof *STAGES;

int main(int argc, char **argv) {
    char path[1024], word[MAX_NAME];
    if (argc != 3) {
        for (int k = 0; k < N_STAGES; k++) printf("%s\n", STAGES[k].name);
        return argc == 1 ? 0 : 2;
    }
    snprintf(path, sizeof path, "%s/cases.txt", argv[1]);
    FILE *file = fopen(path, "r");
    if (!file) fail("cannot read", path);
    Case *c = memory(1, sizeof(Case));
    while (fscanf(file, "%63s", word) == 1) {
        memset(c, 0, sizeof *c);
        c->bundle = argv[1], c->out = argv[2];
        if (fscanf(file, "%63s %63s %d", c->stage, c->name, &c->n_inputs) != 3
            || strcmp(word, "case") || c->n_inputs > MAX_INPUTS)
            fail("cases.txt", word);
        for (int k = 0; k < c->n_inputs; k++) read_input(c, &c->inputs[k], file);
        for (int k = 0; k < N_STAGES; k++)
            if (!strcmp(STAGES[k].name, c->stage)) STAGES[k].run(c);
        for (int k = 0; k < c->n_inputs; k++) free(c->inputs[k].v);
    }
    free(c);
    fclose(file);
    return 0;
}
