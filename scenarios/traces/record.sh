#!/bin/sh
# Record the traces of this directory again: sh record.sh. Takes some minutes; needs valgrind, gcc,
# sqlite3 and python3.
# Addresses differ a little from machine to machine, because libraries do.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat > tree.c <<'C'
typedef unsigned long size_t;
void *calloc(size_t count, size_t size);
struct node { struct node *left, *right; int key, height; };
static int height(const struct node *n) { return n ? n->height : 0; }
static void measure(struct node *n) {
  int l = height(n->left), r = height(n->right);
  n->height = 1 + (l > r ? l : r);
}
static struct node *rotate_right(struct node *n) {
  struct node *m = n->left;
  n->left = m->right; m->right = n;
  measure(n); measure(m);
  return m;
}
static struct node *rotate_left(struct node *n) {
  struct node *m = n->right;
  n->right = m->left; m->left = n;
  measure(n); measure(m);
  return m;
}
static struct node *balance(struct node *n) {
  measure(n);
  if (height(n->left) > height(n->right) + 1) {
    if (height(n->left->left) < height(n->left->right)) n->left = rotate_left(n->left);
    return rotate_right(n);
  }
  if (height(n->right) > height(n->left) + 1) {
    if (height(n->right->right) < height(n->right->left)) n->right = rotate_right(n->right);
    return rotate_left(n);
  }
  return n;
}
struct node *insert(struct node *n, int key) {
  if (!n) { n = calloc(1, sizeof *n); n->key = key; n->height = 1; return n; }
  if (key < n->key) n->left = insert(n->left, key);
  else if (key > n->key) n->right = insert(n->right, key);
  return balance(n);
}
C

sqlite3 people.db <<'SQL'
create table person(id integer primary key, friend integer, name text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000000)
  insert into person select i, (i * 7919) % 2000003, 'a name of some length ' || i from n;
SQL

cat > table.py <<'PY'
size, state = 40_000, 1
table = dict.fromkeys(range(size), 0)
while True:
    state = (state * 1103515245 + 12345) % 2**31
    table[state % size] += 1
PY

cat > graph.c <<'C'
/* graph.c SCALE FILE: write a Kronecker graph as compressed rows: vertices, edges, offsets, neighbours. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
static uint64_t state = 1;
static double uniform(void) { /* SplitMix64 */
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (double)((z ^ z >> 31) >> 11) / 9007199254740992.0;
}
int main(int count, char **argument) {
  if (count != 3) return 2;
  int scale = atoi(argument[1]);
  int64_t vertices = 1l << scale, pairs = 16 * vertices;
  int64_t *name = malloc(vertices * sizeof *name), *end = malloc(2 * pairs * sizeof *end);
  int64_t *offset = calloc(vertices + 2, sizeof *offset), *neighbour = malloc(2 * pairs * sizeof *neighbour);
  for (int64_t v = 0; v < vertices; v++) { /* labels are shuffled, so that hubs lie anywhere */
    int64_t other = (int64_t)(uniform() * (double)(v + 1));
    name[v] = name[other];
    name[other] = v;
  }
  for (int64_t e = 0; e < pairs; e++) {
    int64_t from = 0, to = 0;
    for (int bit = 0; bit < scale; bit++) {
      double u = uniform();
      from = 2 * from + (u >= .57 + .19);
      to = 2 * to + (u >= .57 && (u < .57 + .19 || u >= .57 + .19 + .19));
    }
    end[2 * e] = name[from];
    end[2 * e + 1] = name[to];
    offset[name[from] + 2]++;
    offset[name[to] + 2]++;
  }
  for (int64_t v = 0; v < vertices; v++) offset[v + 2] += offset[v + 1];
  for (int64_t i = 0; i < 2 * pairs; i++) neighbour[offset[end[i] + 1]++] = end[i ^ 1];
  FILE *file = fopen(argument[2], "wb");
  int64_t head[2] = {vertices, 2 * pairs};
  fwrite(head, sizeof *head, 2, file);
  fwrite(offset, sizeof *offset, vertices + 1, file);
  fwrite(neighbour, sizeof *neighbour, 2 * pairs, file);
  return fclose(file);
}
C

cat > search.c <<'C'
/* search.c FILE: breadth-first searches of a graph from one root after another, in memory allocated in one piece. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
static void fill(int file, int64_t *to, int64_t count) {
  for (int64_t done = 0; done < 8 * count;) done += read(file, (char *)to + done, 8 * count - done);
}
int main(int count, char **argument) {
  int64_t head[2];
  int file = open(argument[count - 1], O_RDONLY);
  fill(file, head, 2);
  int64_t vertices = head[0], edges = head[1];
  int64_t *offset = malloc((3 * vertices + 1 + edges) * sizeof *offset);
  int64_t *neighbour = offset + vertices + 1, *parent = neighbour + edges, *queue = parent + vertices;
  fill(file, offset, vertices + 1 + edges);
  for (int64_t search = 0; search < 64; search++) {
    int64_t root = (search * 48271 + 1) % vertices, first = 0, last = 0;
    if (offset[root + 1] - offset[root] < 16) continue; /* perhaps in a small component */
    for (int64_t v = 0; v < vertices; v++) parent[v] = -1;
    parent[root] = root;
    queue[last++] = root;
    while (first < last) {
      int64_t v = queue[first++];
      for (int64_t e = offset[v]; e < offset[v + 1]; e++) {
        int64_t to = neighbour[e];
        if (parent[to] < 0) {
          parent[to] = v;
          queue[last++] = to;
        }
      }
    }
  }
  return 0;
}
C
gcc -O2 graph.c -o graph
gcc -O2 -static -fno-tree-loop-distribute-patterns search.c -o search
./graph 17 kronecker-17

record() { vmmsim trace record --force "$@"; }
record "$here/compiler.parquet" --skip 10000000 --limit 16000000 -- \
  "$(gcc -print-prog-name=cc1)" -quiet -O2 tree.c -o tree.s
record "$here/database.parquet" --skip 2000000 --limit 16000000 -- \
  sqlite3 -cmd "pragma mmap_size=1000000000" people.db "select sum(length(b.name)) from person a join person b on b.id = a.friend"
PYTHONHASHSEED=0 record "$here/python.parquet" --skip 56000000 --limit 16000000 -- \
  /usr/bin/python3 -I -S table.py
record "$here/graph500.parquet" --skip 700000 --limit 4900000 -- ./search kronecker-17
