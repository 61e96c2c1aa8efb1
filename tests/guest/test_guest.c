/* SPDX-License-Identifier: MIT */
/* The agent at work in a virtual machine, under emulation, which needs no special rights
 * and no hardware. Argument: the directory of an image; "boots N" besides prints times. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "archive/archive.h"
#include "vm.h"

enum { MB = 1024 * 1024, USER = 1000 };

static struct vm vm;
static unsigned int count, bad;

static void check(bool ok, const char *what)
{
	count++;
	bad += !ok;
	printf("%sok %u - %s\n", ok ? "" : "not ", count, what);
	fflush(stdout);
}

/* What came of a script is this, and it ended with 0. */
static void check_script(const char *script, const char *output, const char *what)
{
	const struct vm_task *task = vm_script(&vm, script);
	bool ok = task->closed && task->wait_status == 0 && strcmp(vm_text(task), output) == 0;

	check(ok, what);
	if (!ok)
		printf("# status %x, output \"%s\", \"%s\"\n", (unsigned int)task->wait_status,
		       vm_text(task),
		       task->output[AD_GUEST_STDERR].data ? task->output[AD_GUEST_STDERR].data :
							    "");
}

static bool exited_with(const struct vm_task *task, int code)
{
	return task->closed && WIFEXITED(task->wait_status) &&
	       WEXITSTATUS(task->wait_status) == code;
}

static bool killed_by(const struct vm_task *task, int signo)
{
	return task->closed && WIFSIGNALED(task->wait_status) &&
	       WTERMSIG(task->wait_status) == signo;
}

static bool has_limit(const struct vm_task *task, enum ad_guest_limit limit, bool fatal)
{
	return (fatal ? task->fatal_limits : task->limits) & 1u << limit;
}

static void pause_ms(uint64_t ms)
{
	vm_wait(&vm, NULL, NULL, ms);
}

/* ---- the machine */

static bool is_hello(const struct vm *machine, const void *arg)
{
	(void)arg;
	return machine->hello;
}

static bool boot(const char *image)
{
	if (!vm_start(&vm, image) || !vm_wait(&vm, is_hello, NULL, 240 * VM_SECOND)) {
		vm_free(&vm);
		return false;
	}
	return true;
}

static uint64_t realtime_ns(void)
{
	return (uint64_t)time(NULL) * 1000000000;
}

static void test_setup(void)
{
	const struct vm_task *task;
	/* In the past, as no clock of a machine that has just begun is. */
	const uint64_t then = 1000000000;
	uint64_t seconds;

	check(vm.kernel[0] != '\0', "the agent says hello");
	printf("# first byte after %" PRIu64 " ms, kernel %s\n", vm.first_byte_at - vm.started_at,
	       vm.kernel);
	check(vm_setup(&vm, then * 1000000000), "it is ready");
	if (vm.ready_text[0])
		printf("# %s\n", vm.ready_text);
	printf("# ready after %" PRIu64 " ms\n", vm_now() - vm.started_at);
	task = vm_script(&vm, "date +%s");
	seconds = strtoull(vm_text(task), NULL, 10);
	check(seconds >= then && seconds < then + 600, "the clock is what SETUP says");
	check(vm_setup(&vm, realtime_ns()), "it is set up once more");
}

static void test_end(const char *image)
{
	const struct ad_guest_msg stop = { .type = AD_GUEST_STOP };
	int status = -1;

	check(ad_guest_link_send(vm.link, &stop) && vm_ended(&vm, 60 * VM_SECOND, &status) &&
		      status == 0,
	      "the machine ends after STOP");
	vm_free(&vm);
	if (!boot(image)) {
		check(false, "a second machine");
		return;
	}
	check(vm_setup(&vm, realtime_ns()) && vm_ping(&vm, 60 * VM_SECOND) != UINT64_MAX &&
		      waitpid(vm.pid, &status, WNOHANG) == 0,
	      "a second one runs");
	close(vm.sock);
	vm.sock = -1;
	vm.gone = true;
	check(vm_ended(&vm, 60 * VM_SECOND, &status) && status == 0,
	      "it ends when nobody is at the other side");
	vm_free(&vm);
}

/* ---- commands */

static void test_exit(void)
{
	static const char *const no_program[] = { "no-such-program", NULL };
	static const char *const found[] = { "printf", "%s", "found", NULL };
	const struct vm_task *task = vm_script(&vm, "true");

	check(exited_with(task, 0) && task->lived_ns > 0 && task->cpu_ns > 0 &&
		      task->memory_peak > 0,
	      "a command that ends well, and what it used");
	check(exited_with(vm_script(&vm, "exit 7"), 7), "an exit code");
	check(killed_by(vm_script(&vm, "kill -TERM $$"), SIGTERM), "a signal");
	task = vm_do(&vm, &(struct vm_run){ .argv = found, .uid = USER });
	check(exited_with(task, 0) && strcmp(vm_text(task), "found") == 0, "a program in PATH");
	task = vm_do(&vm, &(struct vm_run){ .argv = no_program, .uid = USER });
	check(task->failed && task->failure.u.failed.stage == AD_GUEST_STAGE_EXEC &&
		      task->failure.u.failed.os_errno == ENOENT &&
		      strcmp(task->text, no_program[0]) == 0,
	      "a program that is not there");
	task = vm_do(&vm, &(struct vm_run){ .script = "true", .workdir = "/none", .uid = USER });
	check(task->failed && task->failure.u.failed.stage == AD_GUEST_STAGE_WORKDIR &&
		      strcmp(task->text, "/none") == 0,
	      "a working directory that is not there");
	task = vm_do(&vm, &(struct vm_run){ .script = "true" });
	check(task->failed && task->failure.u.failed.stage == AD_GUEST_STAGE_REQUEST,
	      "no command is root");
}

static void test_streams(void)
{
	static uint8_t input[700 * 1024];
	struct vm_run run = { .script = "echo one; echo two >&2; echo three", .uid = USER };
	const struct vm_task *task = vm_do(&vm, &run);
	const struct ad_buf *err = &task->output[AD_GUEST_STDERR];

	check(strcmp(vm_text(task), "one\nthree\n") == 0 && err->data &&
		      strcmp(err->data, "two\n") == 0,
	      "both streams");
	run.flags = AD_GUEST_RUN_MERGE_STDERR;
	task = vm_do(&vm, &run);
	check(strcmp(vm_text(task), "one\ntwo\nthree\n") == 0, "one stream for both");
	for (size_t i = 0; i < sizeof(input); i++)
		input[i] = (uint8_t)(i * 31 + i / 256);
	run = (struct vm_run){ .script = "cat", .uid = USER, .input = input };
	run.input_len = sizeof(input);
	task = vm_do(&vm, &run);
	check(exited_with(task, 0) && task->output[AD_GUEST_STDOUT].len == sizeof(input) &&
		      memcmp(vm_text(task), input, sizeof(input)) == 0,
	      "what goes in comes out");
	run.script = "exec <&-; echo closed";
	task = vm_do(&vm, &run);
	check(exited_with(task, 0) && strcmp(vm_text(task), "closed\n") == 0,
	      "input that nobody reads holds nothing up");
	check_script("read -r line; echo \"[$line]\"", "[]\n", "no input is an empty one");
}

static void test_flood(void)
{
	/* What is still in the pipe, and in the agent. */
	const uint64_t beyond = AD_GUEST_WINDOW + AD_GUEST_DATA_MAX;
	struct vm_task *task =
		vm_begin(&vm, &(struct vm_run){ .script = "exec yes", .uid = USER, .hold = true });
	uint64_t before, latency, start;

	pause_ms(2 * VM_SECOND);
	before = task->bytes[AD_GUEST_STDOUT];
	check(before == AD_GUEST_WINDOW, "a flood stands still when its window is full");
	latency = vm_ping(&vm, 10 * VM_SECOND);
	check(latency < 5 * VM_SECOND, "the agent answers beside it");
	start = vm_now();
	vm_kill(&vm, task);
	vm_release(&vm, task);
	check(vm_finish(&vm, task) && killed_by(task, SIGKILL), "it is killed");
	check(task->bytes[AD_GUEST_STDOUT] <= before + beyond, "and nothing stale follows");
	printf("# ping %" PRIu64 " ms, kill %" PRIu64 " ms, then %" PRIu64 " bytes\n", latency,
	       vm_now() - start, task->bytes[AD_GUEST_STDOUT] - before);
	start = vm_now();
	task = vm_script(&vm, "head -c 20000000 /dev/zero");
	check(task->bytes[AD_GUEST_STDOUT] == 20000000, "a flood that is read comes through");
	printf("# %.0f MB/s\n", 20000.0 / (double)(vm_now() - start + 1));
}

static void test_tree(void)
{
	const struct vm_run run = { .script = "setsid sleep 1234 & sleep 1235 & echo begun",
				    .uid = USER };
	const char count_them[] = "ps -eo stat,comm | grep -c '^[^ZX].* sleep$'; true";
	struct vm_task *task = vm_begin(&vm, &run);

	check(vm_wait(&vm, vm_is_exited, task, 60 * VM_SECOND) && task->wait_status == 0,
	      "an exit is reported although others hold the pipe");
	pause_ms(300);
	check(!task->closed && !task->ended[AD_GUEST_STDOUT], "but not the end of the tree");
	check_script(count_them, "2\n", "what it left runs");
	vm_kill(&vm, task);
	check(vm_finish(&vm, task), "a kill ends the tree");
	check_script(count_them, "0\n", "nothing of it runs, also not what left the session");
	task = vm_begin(&vm,
			&(struct vm_run){ .script = "trap 'exit 5' TERM; echo; sleep 99 & wait",
					  .uid = USER });
	while (!vm.gone && task->bytes[AD_GUEST_STDOUT] == 0)
		pause_ms(20);
	{
		struct ad_guest_msg msg = { .type = AD_GUEST_SIGNAL, .id = task->id };

		msg.u.signal.signo = SIGTERM;
		ad_guest_link_send(vm.link, &msg);
	}
	check(vm_finish(&vm, task) && exited_with(task, 5), "a signal that a command handles");
}

static void test_many(void)
{
	enum { MANY = 8 };
	const struct vm_task *tasks[MANY];
	bool ok = true;

	for (int i = 0; i < MANY; i++)
		tasks[i] = vm_begin(&vm, &(struct vm_run){ .script = "sleep 0.5; echo $$",
							   .uid = USER });
	for (int i = 0; i < MANY; i++)
		ok &= vm_finish(&vm, tasks[i]) && exited_with(tasks[i], 0) &&
		      (i == 0 || strcmp(vm_text(tasks[i]), vm_text(tasks[i - 1])) != 0);
	check(ok, "several commands at once");
}

/* ---- limits */

static const struct vm_task *limited(const char *script, const struct ad_guest_limits *limits)
{
	const struct vm_run run = { .script = script, .uid = USER, .limits = *limits };
	struct vm_task *task = vm_begin(&vm, &run);

	vm_wait(&vm, vm_is_exited, task, 120 * VM_SECOND);
	/* As the library does. */
	if (!vm_is_over(&vm, task))
		vm_kill(&vm, task);
	vm_finish(&vm, task);
	return task;
}

static void test_limits(void)
{
	const char eat[] = "head -c 60000000 /dev/zero | tail -c 60000000 | wc -c";
	const struct ad_guest_limits none = { 0 }, memory = { .memory = 32 * MB },
				     pids = { .pids = 8 }, cpu_time = { .cpu_time_ms = 300 },
				     io = { .io = MB }, file = { .file = 4096 },
				     files = { .open_files = 10 };
	const char fork_much[] =
		"for i in $(seq 20); do sleep 30 & done 2>/dev/null; jobs -p | wc -l";
	const char write_much[] = "head -c 3000000 /dev/zero >big; sleep 2; rm big; echo done";
	const struct vm_task *task = limited(eat, &memory);

	check(has_limit(task, AD_GUEST_LIMIT_MEMORY, true) && killed_by(task, SIGKILL),
	      "memory: all of the command is killed, and the limit named");
	task = limited(eat, &none);
	check(!task->limits && strcmp(vm_text(task), "60000000\n") == 0, "without it that runs");
	task = limited(fork_much, &pids);
	check(has_limit(task, AD_GUEST_LIMIT_PIDS, false) && !task->fatal_limits, "tasks: named");
	task = limited(fork_much, &none);
	check(!task->limits && strcmp(vm_text(task), "20\n") == 0, "without it that runs");
	task = limited("while :; do :; done", &cpu_time);
	check(has_limit(task, AD_GUEST_LIMIT_CPU_TIME, true) && killed_by(task, SIGKILL) &&
		      task->cpu_ns >= 300000000,
	      "CPU time");
	task = limited(write_much, &io);
	check(has_limit(task, AD_GUEST_LIMIT_IO, true) && killed_by(task, SIGKILL),
	      "bytes written");
	task = limited(write_much, &none);
	check(!task->limits && exited_with(task, 0), "without it that runs");
	check(killed_by(limited("exec head -c 9999 /dev/zero >large", &file), SIGXFSZ),
	      "the size of a file");
	task = limited("ulimit -n; ulimit -Hn", &files);
	check(strcmp(vm_text(task), "10\n10\n") == 0, "open files");
}

/* What a command had written before a limit ended it, for who takes it late. */
static void test_late_reader(void)
{
	const uint64_t all = AD_GUEST_WINDOW + 200000;
	const struct vm_run run = {
		.script = "head -c 462144 /dev/zero; while :; do :; done",
		.uid = USER,
		.limits = { .cpu_time_ms = 1500 },
		.hold = true,
	};
	struct vm_task *task = vm_begin(&vm, &run);

	vm_wait(&vm, vm_is_exited, task, 60 * VM_SECOND);
	pause_ms(7 * VM_SECOND);
	check(has_limit(task, AD_GUEST_LIMIT_CPU_TIME, true) && !task->closed &&
		      task->bytes[AD_GUEST_STDOUT] == AD_GUEST_WINDOW,
	      "what there is no room for is kept");
	vm_release(&vm, task);
	check(vm_finish(&vm, task) && task->bytes[AD_GUEST_STDOUT] == all,
	      "and comes, however late");
}

static void test_hungry(void)
{
	const char eat_all[] = "head -c 900000000 /dev/zero | tail -c 900000000 | wc -c";
	const struct ad_guest_limits none = { 0 };
	struct vm_task *task =
		vm_begin(&vm,
			 &(struct vm_run){ .script = "f() { f | f & }; f; sleep 99", .uid = USER });
	uint64_t latency;

	pause_ms(3 * VM_SECOND);
	latency = vm_ping(&vm, 30 * VM_SECOND);
	check(latency != UINT64_MAX, "the agent answers beside a fork bomb");
	vm_kill(&vm, task);
	check(vm_finish(&vm, task), "which is killed");
	printf("# ping %" PRIu64 " ms\n", latency);
	check(has_limit(limited(eat_all, &none), AD_GUEST_LIMIT_MEMORY, true),
	      "who wants all of the memory is killed");
	task = (struct vm_task *)limited("head -c 900000000 /dev/zero >fill; echo $?; rm fill",
					 &none);
	check(!task->limits && strcmp(vm_text(task), "1\n") == 0,
	      "files that fill the machine are an error, and not its end");
	check_script("echo alive", "alive\n", "and commands run");
}

/* A large program reads its own pages again and again, which never ends by itself. */
static void test_thrashing(void)
{
	const char hog[] = "exec python3 -c 'n = []\n"
			   "while True: n.append(bytearray(1 << 20))'";
	const char left[] = "python3 -c 'n = []\n"
			    "while True: n.append(bytearray(1 << 20))' & echo left";
	const char bystander[] = "while ! [ -e /tmp/over ]; do sleep 0.2; done; echo $?";
	const struct ad_guest_limits none = { 0 }, memory = { .memory = 96 * MB };
	struct vm_task *other = vm_begin(&vm, &(struct vm_run){ .script = bystander, .uid = USER });
	struct vm_task *task;

	check(has_limit(limited(hog, &none), AD_GUEST_LIMIT_MEMORY, true),
	      "who thrashes is killed, and the limit named");
	check(has_limit(limited(hog, &memory), AD_GUEST_LIMIT_MEMORY, true),
	      "also within a limit of its own");
	task = vm_begin(&vm, &(struct vm_run){
				     .script = left, .uid = USER, .flags = AD_GUEST_RUN_STAY });
	vm_wait(&vm, vm_is_exited, task, 10 * VM_SECOND);
	vm_kill(&vm, task);
	check(vm_finish(&vm, task) && strcmp(vm_text(task), "left\n") == 0,
	      "one is left in the background");
	check_script(
		"n() { ps -eo stat,comm | grep -c '^[^ZX].* python3$'; }; n; i=0; "
		"while [ $(n) = 1 ] && [ $i -lt 300 ]; do sleep 0.2; i=$((i + 1)); done; n; true",
		"1\n0\n", "it is killed as well");
	check(!other->exited && !other->limits, "but not who was there beside them");
	vm_script(&vm, "touch /tmp/over");
	check(vm_finish(&vm, other) && strcmp(vm_text(other), "0\n") == 0,
	      "which comes to its end");
}

/* ---- what a command may not */

static void test_privileges(void)
{
	check_script("grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Groups):'"
		     " /proc/self/status | tr -d '\\t '",
		     "Groups:1000\nCapInh:0000000000000000\nCapPrm:0000000000000000\n"
		     "CapEff:0000000000000000\nCapBnd:0000000000000000\nCapAmb:0000000000000000\n"
		     "NoNewPrivs:1\n",
		     "no capability, and no way to any");
	check_script("grep -c 'CapEff:.*[1-9a-f]' /proc/1/status", "1\n", "the agent has them");
	/* It keeps two for each command that has left something in the background. */
	check_script(
		"grep 'open files' /proc/1/limits | tr -s ' '; ulimit -n; ulimit -Hn",
		"Max open files 1048576 1048576 files \n1024\n4096\n",
		"the agent has descriptors for more than there are processes, others have not");
	check_script("id -u; id -g; hostname; umask", "1000\n1000\nsandbox\n0022\n",
		     "who and where it is");
	check_script("ls /dev | sort | tr '\\n' ' '",
		     "fd full kmsg null ptmx pts random shm stderr stdin stdout tty urandom zero ",
		     "no device of the machine");
	check_script(
		"for file in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /dev/kmsg"
		" /sys/fs/cgroup/cgroup.procs /etc/passwd /proc/1/oom_score_adj; do"
		" (echo 0 >$file) 2>/dev/null && echo $file; done; echo 0 >/tmp/mine && echo fine",
		"fine\n", "nothing of the machine can be written to");
	check_script("kill -KILL 1 2>/dev/null || echo refused; ls /proc/1/fd 2>/dev/null ||"
		     " echo refused; ls /proc/$$/fd >/dev/null && echo fine",
		     "refused\nrefused\nfine\n", "the agent is out of reach");
	check_script(
		"find / -xdev -type f -perm /6000 2>/dev/null | wc -l; cp /bin/true /tmp/t;"
		" chmod 4755 /tmp/t; find /tmp -perm /4000; grep -c ' / .*nosuid' /proc/mounts",
		"0\n/tmp/t\n1\n", "set-user-id means nothing");
	check_script(
		"(echo >/dev/tcp/127.0.0.1/9) 2>&1 | grep -o -m 1 'connect: Connection refused';"
		" ls /sys/class/net",
		"connect: Connection refused\nlo\n",
		"there is the loopback interface, and no other");
	check_script("echo shared >/dev/shm/x; cat /dev/shm/x; cd; pwd; touch here && ls",
		     "shared\n/run/home\nhere\n", "shared memory and a home");
	check_script("git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q"
		     " --allow-empty -m x && git log --format=%s; python3 -c 'print(6*7)'",
		     "x\n42\n", "git and Python");
}

/* ---- files */

static void test_files(void)
{
	char base[] = "/tmp/agentd-guest.XXXXXX", path[128];
	struct ad_manifest *manifest = NULL;
	struct ad_archive_job job = {
		.max_bytes = MB, .max_entries = 1000, .uid = (uid_t)-1, .gid = (gid_t)-1
	};
	FILE *in = tmpfile(), *out = tmpfile();
	const struct vm_task *task;
	struct stat st;
	int fd;

	if (!mkdtemp(base) || !in || !out) {
		check(false, "a directory for files");
		return;
	}
	job.dir_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/file%d", base, i);
		fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
		dprintf(fd, "content %d\n", i);
		close(fd);
	}
	job.fd = fileno(in);
	check(ad_archive_pack(&job, &manifest) == 0, "a directory is packed");
	rewind(in);
	task = vm_files(&vm, AD_GUEST_PUT, "/job/tree", MB, in);
	check(task->done && task->failure.u.done.os_errno == 0, "and put into the machine");
	check_script("cd /job/tree && stat -c '%n %u %g %a' * && cat *",
		     "file0 1000 1000 644\nfile1 1000 1000 644\nfile2 1000 1000 644\n"
		     "content 0\ncontent 1\ncontent 2\n",
		     "where a command finds it");
	check_script("cd /job/tree && rm file0 && echo changed >file1 && mkdir new &&"
		     " echo made >new/file && chmod 4755 new/file",
		     "", "and changes it");
	task = vm_files(&vm, AD_GUEST_GET, "/job/tree", MB, out);
	check(task->done && task->failure.u.done.os_errno == 0, "the changes are got");
	rewind(out);
	job.fd = fileno(out);
	if (ad_archive_unpack(&job, manifest) < 0)
		printf("# %s: %s\n", job.failed.path, ad_carry_reason_text(job.failed.reason));
	snprintf(path, sizeof(path), "%s/file0", base);
	check(access(path, F_OK) < 0 && errno == ENOENT, "what was deleted is deleted");
	snprintf(path, sizeof(path), "%s/new/file", base);
	check(stat(path, &st) == 0 && st.st_size == 5, "what was made is made");
	check(!(st.st_mode & S_ISUID), "but not with other rights");
	snprintf(path, sizeof(path), "%s/file1", base);
	check(stat(path, &st) == 0 && st.st_size == 8, "what was changed is changed");
	task = vm_files(&vm, AD_GUEST_GET, "/job/tree", 10, out);
	check(task->done && task->failure.u.done.os_errno == EFBIG, "too much is an error");
	task = vm_files(&vm, AD_GUEST_GET, "/etc", MB, out);
	check(task->done && task->failure.u.done.os_errno == ENOENT, "only what was put there");
	rewind(out);
	if (ftruncate(fileno(out), 0) < 0 || fputs("this is no archive", out) < 0)
		check(false, "a file");
	rewind(out);
	task = vm_files(&vm, AD_GUEST_PUT, "/job/other", MB, out);
	check(task->done && task->failure.u.done.os_errno == EBADMSG, "what is no archive");
	ad_manifest_free(manifest);
	close(job.dir_fd);
	fclose(in);
	fclose(out);
	snprintf(path, sizeof(path), "rm -rf %s", base);
	if (system(path) != 0) /* NOLINT(cert-env33-c): made here */
		check(false, "cleaning up");
}

/* ---- a process made ahead of its command, as the first command of a clone has one */

/* How long before its program the shell's process began, in hundredths of a second. */
#define AGE                                                                                        \
	"read -r up idle </proc/uptime; read -r stat </proc/$$/stat; set -- ${stat##*) }; "        \
	"shift 19; echo age $((${up%.*}${up#*.} - $1))"

static bool says(const struct vm_task *task, const char *begin)
{
	return strncmp(vm_text(task), begin, strlen(begin)) == 0;
}

static long age_of(const struct vm_task *task)
{
	const char *age = strstr(vm_text(task), "age ");

	return age ? strtol(age + strlen("age "), NULL, 10) : -1;
}

/* So much longer it waits at least, and one that did not wait takes less. */
enum { AHEAD_MS = 3000 };

static bool made_ahead(const struct vm_task *task)
{
	return age_of(task) >= AHEAD_MS / 10;
}

static bool made_then(const struct vm_task *task)
{
	return age_of(task) >= 0 && !made_ahead(task);
}

static bool boot_warm(const char *image, unsigned int times)
{
	const struct ad_guest_msg warm = { .type = AD_GUEST_WARM };

	if (!boot(image))
		return false;
	while (times--) {
		if (!ad_guest_link_send(vm.link, &warm) ||
		    vm_ping(&vm, 120 * VM_SECOND) == UINT64_MAX)
			return false;
	}
	pause_ms(AHEAD_MS);
	return vm_setup(&vm, realtime_ns());
}

static bool ends(uint32_t grace_ms, uint64_t timeout_ms)
{
	struct ad_guest_msg stop = { .type = AD_GUEST_STOP };
	int status = -1;
	bool ok;

	stop.u.stop.grace_ms = grace_ms;
	ok = ad_guest_link_send(vm.link, &stop) && vm_ended(&vm, timeout_ms, &status) &&
	     status == 0;
	vm_free(&vm);
	return ok;
}

static void test_ahead(const char *image)
{
	static char large[100 * 1024];
	const char *const much[] = { "/bin/sh", "-c", "echo ${#0}; " AGE, large, NULL };
	const char *const no_program[] = { "no-such-program", NULL };
	struct vm_run run = { .script = "echo out; echo err >&2; cat; pwd; id -u; " AGE,
			      .uid = USER,
			      .workdir = "/var" };
	const struct vm_task *task;

	if (!boot_warm(image, 2)) {
		check(false, "a machine that was warmed twice");
		return;
	}
	for (int i = 0; i < 2; i++) {
		task = vm_do(&vm, &run);
		check(exited_with(task, 0) && says(task, "out\n/var\n1000\nage ") &&
			      strcmp(task->output[AD_GUEST_STDERR].data, "err\n") == 0,
		      i ? "the next" : "the first command");
		check(i ? made_then(task) : made_ahead(task),
		      i ? "begins when it is told" : "has a process that was made ahead");
	}
	check_script("ls -d /sys/fs/cgroup/tasks/*/ | wc -l", "1\n", "no group is left over");
	check(ends(0, 60 * VM_SECOND), "it ends");

	memset(large, 'a', sizeof(large) - 1);
	if (!boot_warm(image, 1)) {
		check(false, "a machine that was warmed");
		return;
	}
	task = vm_do(&vm, &(struct vm_run){ .argv = much, .uid = USER });
	check(says(task, "102399\n") && made_then(task),
	      "more than it can be told is for a process of its own");
	run = (struct vm_run){ .script = "cat; echo err >&2; ulimit -n; " AGE,
			       .uid = USER,
			       .flags = AD_GUEST_RUN_MERGE_STDERR,
			       .limits = { .open_files = 10 },
			       .input = "in\n",
			       .input_len = 3 };
	task = vm_do(&vm, &run);
	check(says(task, "in\nerr\n10\nage ") && made_ahead(task),
	      "it is left for the next, with input, merged output and a limit");
	check(ends(0, 60 * VM_SECOND), "it ends");

	if (!boot_warm(image, 1)) {
		check(false, "a machine that was warmed");
		return;
	}
	task = vm_do(&vm, &(struct vm_run){ .argv = no_program, .uid = USER });
	check(task->failed && task->failure.u.failed.stage == AD_GUEST_STAGE_EXEC &&
		      strcmp(task->text, no_program[0]) == 0,
	      "it says what it could not execute");
	check_script("ls -d /sys/fs/cgroup/tasks/*/ | wc -l", "1\n", "and leaves nothing");
	check(ends(0, 60 * VM_SECOND), "it ends");

	if (!boot_warm(image, 1)) {
		check(false, "a machine that was warmed");
		return;
	}
	task = vm_do(&vm, &(struct vm_run){ .script = "echo out",
					    .uid = USER,
					    .limits = { .memory = 4096 } });
	check(killed_by(task, SIGKILL) && has_limit(task, AD_GUEST_LIMIT_MEMORY, true),
	      "less memory than it has ends it by its limit");
	check(ends(0, 60 * VM_SECOND), "it ends");

	check(boot_warm(image, 1) && ends(60 * VM_SECOND, 30 * VM_SECOND),
	      "a stop does not wait for one that nobody needed");
}

/* ---- times */

static int by_size(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

static void print_boots(const char *image, size_t boots)
{
	uint64_t *first = calloc(boots, sizeof(*first)), *ready = calloc(boots, sizeof(*ready));

	for (size_t i = 0; i < boots; i++) {
		check(boot(image) && vm_setup(&vm, realtime_ns()), "boots");
		first[i] = vm.first_byte_at - vm.started_at;
		ready[i] = vm_now() - vm.started_at;
		vm_free(&vm);
	}
	qsort(first, boots, sizeof(*first), by_size);
	qsort(ready, boots, sizeof(*ready), by_size);
	printf("# first byte: median %" PRIu64 " ms, %" PRIu64 " to %" PRIu64
	       "; ready: median %" PRIu64 " ms, %" PRIu64 " to %" PRIu64 "\n",
	       first[boots / 2], first[0], first[boots - 1], ready[boots / 2], ready[0],
	       ready[boots - 1]);
	free(first);
	free(ready);
}

int main(int argc, char **argv)
{
	const char *missing = argc > 1 ? vm_missing(argv[1]) : "an image";

	if (missing) {
		fprintf(stderr, "SKIP-CANNOT: there is no %s\n", missing);
		return 77;
	}
	if (argc == 4 && strcmp(argv[2], "boots") == 0) {
		print_boots(argv[1], strtoul(argv[3], NULL, 10));
		return bad != 0;
	}
	if (!boot(argv[1])) {
		check(false, "the agent says hello");
		return 1;
	}
	test_setup();
	test_exit();
	test_streams();
	test_tree();
	test_many();
	test_flood();
	test_privileges();
	test_files();
	test_limits();
	test_late_reader();
	test_hungry();
	test_thrashing();
	test_end(argv[1]);
	test_ahead(argv[1]);
	printf("1..%u\n", count);
	return bad != 0;
}
