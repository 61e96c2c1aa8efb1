# SPDX-License-Identifier: MIT
"""What developers' tools need is there in the sandbox as agentd-run gives it: the default
policy, no network, nothing allowed besides.

AGENTD_RUN names the program. Each tool does real work; what it printed and what it left
in the working directory are both looked at."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap

import tap

AGENTD_RUN = os.environ["AGENTD_RUN"]
PATH = "/usr/local/bin:/usr/bin:/bin"
TOOLS = []


class Place:
    """A working directory, of whoever runs this."""

    def __init__(self):
        self.base = tempfile.mkdtemp(prefix="agentd-test-tools-")
        os.chmod(self.base, 0o755)
        self.work = os.path.join(self.base, "work")
        os.mkdir(self.work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base)

    def path(self, *names):
        return os.path.join(self.work, *names)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(textwrap.dedent(text))

    def outside(self, *argv):
        """The same tool without a sandbox, in an environment as empty as in one."""
        subprocess.run(argv, cwd=self.work, check=True, capture_output=True,
                       env={"PATH": PATH, "HOME": self.base, "LANG": "C.UTF-8"})

    def run(self, script, *options):
        """A script that fails with its first command that does."""
        result = os.path.join(self.base, "result")
        done = tap.run([AGENTD_RUN, "--quiet", "--timeout-ms", "120000", "--workdir", self.work,
                        "--result", result, *options, "--", "set -eu\n" + textwrap.dedent(script)])
        with open(result, encoding="utf-8") as file:
            done.result = json.load(file)
        return done

    def expect(self, what, done, out):
        """It succeeded, and printed these words."""
        tap.check(done.returncode == 0 and done.stdout.split() == out.split(), what,
                  [done.stdout, done.stderr, str(done.result.get("cause"))])
        denied = done.result.get("denied_count")
        tap.check(denied == 0, f"{what}: nothing was denied", [str(denied), done.stderr])


def tool(*needed):
    def register(function):
        TOOLS.append((needed, function))
        return function
    return register


GIT = "git -c user.name=agent -c user.email=agent@localhost"


@tool("git")
def git(place):
    place.expect("git: init, commit, branch, merge, clone", place.run(f"""
        git init -q -b main repo && cd repo
        echo one > file && git add file && {GIT} commit -q -m one
        git checkout -q -b side && echo two >> file && {GIT} commit -q -a -m two
        git checkout -q main && {GIT} merge -q --no-ff -m merge side
        git log --format=%s --first-parent && git fsck --strict 2>&1
        git gc -q && git clone -q . ../clone && git -C ../clone log --format=%s -1
        """), "merge one merge")
    place.outside("git", "init", "-q", "-b", "main", "there")
    place.write("there/file", "by the host\n")
    place.expect("git: commit, stash, worktree, rebase in the host's repository", place.run(f"""
        cd there && git add file && {GIT} commit -q -m first
        echo more >> file && {GIT} stash -q && {GIT} stash pop -q && {GIT} commit -q -a -m second
        git worktree add -q ../tree -b topic HEAD~1 && cd ../tree
        echo other > other && git add other && {GIT} commit -q -m third
        {GIT} rebase -q main && git log --format=%s && git worktree list | wc -l
        git -C ../there worktree remove ../tree
        """), "third second first 2")
    place.outside("git", "-C", "there", "fsck", "--strict")
    tap.check(os.stat(place.path("there", ".git", "HEAD")).st_uid == os.geteuid(),
              "git: what it wrote is its owner's")


@tool("python3")
def python(place):
    place.write("many.py", """
        import asyncio, multiprocessing, multiprocessing.shared_memory, tempfile, threading, sys

        def double(x):
            return 2 * x

        def add(semaphore, value):
            for _ in range(1000):
                with semaphore:
                    value.value += 1

        async def main():
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"ping\\n")
            answer = await reader.readline()
            child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            out, _ = await child.communicate(answer)
            await asyncio.to_thread(threading.Event().wait, 0.01)
            writer.close()
            server.close()
            return out.decode().strip()

        async def serve(reader, writer):
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        if __name__ == "__main__":
            print(asyncio.run(main()))
            with multiprocessing.Pool(4) as pool:
                print(sum(pool.map(double, range(1000))))
            semaphore, value = multiprocessing.Semaphore(1), multiprocessing.Value("i", 0, lock=False)
            workers = [multiprocessing.Process(target=add, args=(semaphore, value)) for _ in range(4)]
            [w.start() for w in workers], [w.join() for w in workers]
            print(value.value)
            memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20)
            memory.buf[-1] = 7
            print(memory.buf[-1])
            memory.close(), memory.unlink()
            with multiprocessing.Manager() as manager:
                print(sum(manager.list([1, 2])))
            with tempfile.NamedTemporaryFile() as file:
                print(file.name.startswith("/tmp/"))
        """)
    place.expect("python3: asyncio, multiprocessing, semaphores, shared memory",
                 place.run("python3 many.py"), "PING 999000 4000 7 3 True")
    place.write("package/pyproject.toml", """
        [project]
        name = "ours"
        version = "1"
        """)
    place.write("package/ours.py", "answer = 42\n")
    place.expect("python3: a virtual environment with a package of its own", place.run("""
        python3 -m venv env && . env/bin/activate
        python -m pip --version >/dev/null
        echo "$PWD/package" > "$(echo env/lib/python3*/site-packages)/ours.pth"
        python -c 'import ours, sys; print(ours.answer, sys.prefix != sys.base_prefix)'
        """), "42 True")
    tap.check(os.path.exists(place.path("env", "bin", "python")), "python3: the environment stays")


@tool("node", "npm")
def node(place):
    place.write("many.js", """
        const http = require("http"), { Worker } = require("worker_threads"), fs = require("fs");
        const { execFileSync } = require("child_process"), crypto = require("crypto");
        const server = http.createServer((q, a) => a.end("served " + q.url));
        server.listen(0, "127.0.0.1", async () => {
          const answer = await new Promise((done) =>
            http.get({ port: server.address().port, host: "127.0.0.1", path: "/x" }, (r) => {
              let text = ""; r.on("data", (d) => text += d); r.on("end", () => done(text)); }));
          server.close();
          const sum = await new Promise((done, fail) => {
            const w = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
            w.on("message", done); w.on("error", fail); });
          fs.writeFileSync("made", crypto.randomBytes(8));
          console.log(answer, sum, execFileSync("echo", ["child"]).toString().trim(),
                      fs.statSync("made").size);
        });
        """)
    place.expect("node: a server, a worker, a child", place.run("node many.js"), "served /x 42 child 8")
    place.write("left/package.json", '{"name": "left", "version": "1.0.0", "main": "i.js"}\n')
    place.write("left/i.js", 'module.exports = "left";\n')
    place.write("app/package.json", """
        {"name": "app", "version": "1.0.0", "private": true,
         "scripts": {"hello": "node -e 'console.log(require(\\"left\\"))'"}}
        """)
    place.expect("npm: install and run without a network", place.run("""
        cd app && npm install --offline --no-audit --no-fund --silent ../left
        npm run --silent hello
        """), "left")


@tool("make", "gcc")
def make(place):
    place.write("Makefile", """
        CFLAGS = -O2 -Wall -pthread
        .RECIPEPREFIX = >
        program: main.o sum.o
        > $(CC) $(CFLAGS) -o $@ $^
        main.o sum.o: sum.h
        clean:
        > rm -f *.o program
        """)
    place.write("sum.h", "int sum(int n);\n")
    place.write("sum.c", '#include "sum.h"\nint sum(int n) { return n ? n + sum(n - 1) : 0; }\n')
    place.write("main.c", """
        #include <stdio.h>
        #include <pthread.h>
        #include "sum.h"
        static void *run(void *p) { *(int *)p = sum(100); return 0; }
        int main(void)
        {
            pthread_t t; int r = 0;
            pthread_create(&t, 0, run, &r); pthread_join(t, 0);
            return printf("%d\\n", r) < 0;
        }
        """)
    place.expect("make and gcc: a program from two objects",
                 place.run("make -s -j2 && ./program && make -q && make -s clean && ls *.c"),
                 "5050 main.c sum.c")


@tool("cargo", "rustc")
def cargo(place):
    place.expect("cargo: build and test without a network", place.run("""
        cargo init -q --vcs none --name ours app 2>/dev/null
        cargo init -q --vcs none --lib --name dep dep 2>/dev/null
        echo 'pub fn answer() -> u32 { std::thread::spawn(|| 42).join().unwrap() }' > dep/src/lib.rs
        echo 'dep = { path = "../dep" }' >> app/Cargo.toml
        echo 'fn main() { println!("{}", dep::answer()); }
              #[test] fn works() { assert_eq!(dep::answer(), 42); }' > app/src/main.rs
        cd app && cargo build -q --offline && ./target/debug/ours
        cargo test -q --offline 2>&1 | grep -o '1 passed'
        """), "42 1 passed")


@tool("tar", "gzip", "xz")
def tar(place):
    place.expect("tar: links, modes and times come back", place.run("""
        mkdir -p from/dir && echo text > from/dir/file && ln from/dir/file from/hard
        ln -s dir/file from/soft && chmod 0750 from/dir && touch -d 2001-02-03 from/dir/file
        head -c 3M /dev/zero > from/zeros && mkfifo from/fifo
        for how in z J; do
            tar -c -$how -f pack.$how from && rm -rf to && mkdir to && tar -x -f pack.$how -C to
            test "$(stat -c '%a %h %Y' from/dir/file from/dir)" = \\
                 "$(stat -c '%a %h %Y' to/from/dir/file to/from/dir)"
            readlink to/from/soft && cmp from/zeros to/from/zeros && test -p to/from/fifo
        done
        """), "dir/file dir/file")


@tool("sqlite3")
def sqlite(place):
    place.expect("sqlite3: writers at once, with a write-ahead log", place.run("""
        sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER)'
        for i in 1 2 3 4; do
            (for j in $(seq 25); do sqlite3 -cmd '.timeout 60000' db "INSERT INTO t VALUES ($j)"; done) &
        done
        wait && sqlite3 db 'SELECT count(*), sum(n) FROM t; PRAGMA integrity_check'
        """), "wal 100|1300 ok")


@tool("python3")
def server(place):
    place.write("page", "hello\n")
    done = place.run("""
        python3 -u -m http.server --bind 127.0.0.1 8080 >log 2>&1 &
        python3 - <<'END'
        import time, urllib.request
        for _ in range(600):
            try:
                print(urllib.request.urlopen("http://127.0.0.1:8080/page").read().decode())
                break
            except OSError:
                time.sleep(0.05)
        END
        """)
    place.expect("a server in the background answers a client", done, "hello")
    with open(place.path("log"), encoding="utf-8") as file:
        tap.check("GET /page" in file.read(), "the server has seen it")
    tap.check(done.result["cause"] == "exited" and done.result["duration_ms"] < 60000,
              "and does not keep the command from ending", [str(done.result)])


@tool("perl", "awk", "sed", "find", "xargs")
def scripts(place):
    place.expect("pipes, find, xargs, sort, perl", place.run("""
        seq 200 | xargs -P 4 -I N sh -c 'echo N > f$(printf %03d N)'
        find . -name 'f*' -print0 | xargs -0 cat | sort -n | tail -1
        perl -e 'use Socket; use POSIX ":sys_wait_h"; pipe(R, W); if (!fork) { syswrite W, "kid\\n"; exit }
                 wait; print scalar <R>'
        awk '{ s += $1 } END { print s }' f* ; sed -n 's/^20*$/two/p' f002
        """), "200 kid 20100 two")


def main():
    for needed, function in TOOLS:
        missing = [name for name in needed if not shutil.which(name, path=PATH)]
        if missing:
            print(f"SKIP-CANNOT: {function.__name__}: not installed: {missing}", file=sys.stderr)
            continue
        with Place() as place:
            function(place)
    tap.finish()


if __name__ == "__main__":
    main()
