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

record() { vmmsim trace record --force "$@"; }
record "$here/compiler.parquet" --skip 10000000 --limit 16000000 -- \
  "$(gcc -print-prog-name=cc1)" -quiet -O2 tree.c -o tree.s
record "$here/database.parquet" --skip 2000000 --limit 16000000 -- \
  sqlite3 -cmd "pragma mmap_size=1000000000" people.db "select sum(length(b.name)) from person a join person b on b.id = a.friend"
PYTHONHASHSEED=0 record "$here/python.parquet" --skip 56000000 --limit 16000000 -- \
  /usr/bin/python3 -I -S table.py
