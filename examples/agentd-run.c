/* SPDX-License-Identifier: MIT */
/* agentd-run: run one command through libagentd. See agentd-run(1).
 *
 * Also an example of a host program: the event base, the signal handling and
 * the descriptors are its own, the library is a guest on the base. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include <agentd/agentd.h>

enum {
	STATUS_TIMEOUT = 124,
	STATUS_FAILED = 125, /* the library, this program or its usage */
	STATUS_DENIED = 126,
	STATUS_SIGNALED = 128,
	STATUS_LIMIT = 137,
	JSON_FILE_MAX = 1 << 20, /* what the library takes */
	TOKEN_MAX = 64 << 10,    /* the same */
	STDIN_CHUNK = 64 << 10,
	SESSION_GRACE_MS = 5000, /* for its files to be written out */
};

struct options {
	const char *backend, *image, *resolver, *workdir, *policy_file, *context_file, *params_file;
	const char *result_file, *events_file;
	const char *session, *pool_file;
	const char *grants; /* an option that only widens, for the error message */
	bool min_isolation_set, net_set, hosts_set, workdir_set, timeout_set;
	bool no_protect, probe, no_cache;
	const char *not_probe; /* an option that --probe has no use for */
	bool no_stderr_log, kill_on_output, stdin_open, quiet, require_kvm;
	int32_t min_isolation, net;
	struct agentd_limits limits;
	agentd_context *context;
	agentd_policy *policy;
	char **command; /* NULL-terminated */
	int command_len;
};

/* Our stdin on its way to the command's. */
struct input {
	struct event *readable; /* NULL: a file, which is always readable */
	size_t off, len;
	bool open, eof;
	uint8_t buf[STDIN_CHUNK];
};

struct run {
	const struct options *options;
	struct event_base *base;
	struct event *signals[3];
	agentd_runner *runner;
	agentd_exec *exec;
	FILE *events, *result;
	bool quiet, failed; /* failed: something of ours, already reported */
	int signo;          /* the signal that first asked us to stop */
	int status;
	struct timespec start;
	struct input input;
};

static void complain(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
static void complain(const char *fmt, ...)
{
	va_list args;

	fputs("agentd-run: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
}

static _Noreturn void usage(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
static _Noreturn void usage(const char *fmt, ...)
{
	va_list args;

	fputs("agentd-run: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputs("\nTry 'agentd-run --help'.\n", stderr);
	exit(STATUS_FAILED);
}

static _Noreturn void die_of(const char *what, const char *value, const agentd_error *err)
{
	const char *pointer = agentd_error_pointer(err);

	complain("%s%s%s: %s%s%s%s", what, value ? " " : "", value ? value : "",
		 agentd_error_message(err), *pointer ? " (at " : "", pointer, *pointer ? ")" : "");
	exit(STATUS_FAILED);
}

/* err by its address: arguments have no order, and rc is what sets it. */
static void check(int rc, const char *what, const char *value, agentd_error **err)
{
	if (rc < 0)
		die_of(what, value, *err);
}

static _Noreturn void die_nomem(void)
{
	complain("out of memory");
	exit(STATUS_FAILED);
}

/* ---- option values */

static uint64_t parse_number(const char *option, const char *text, uint64_t min, uint64_t max,
			     bool bytes)
{
	static const struct {
		const char *suffix;
		unsigned shift;
	} units[] = { { "K", 10 }, { "KiB", 10 }, { "M", 20 }, { "MiB", 20 },
		      { "G", 30 }, { "GiB", 30 }, { "T", 40 }, { "TiB", 40 } };
	unsigned shift = 0;
	uint64_t value = 0;
	const char *p = text;

	for (; *p >= '0' && *p <= '9'; p++) {
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
			usage("--%s: '%s' is out of range (%" PRIu64 " to %" PRIu64 ")", option,
			      text, min, max);
	}
	if (p == text)
		usage("--%s: '%s' is not a number", option, text);
	for (size_t i = 0; bytes && i < sizeof(units) / sizeof(units[0]); i++) {
		if (strcmp(p, units[i].suffix) == 0) {
			shift = units[i].shift;
			p += strlen(p);
		}
	}
	if (*p)
		usage("--%s: '%s' is not a number%s", option, text,
		      bytes ? " with an optional K, M, G or T" : "");
	if (value > UINT64_MAX >> shift || value << shift < min || value << shift > max)
		usage("--%s: '%s' is out of range (%" PRIu64 " to %" PRIu64 ")", option, text, min,
		      max);
	return value << shift;
}

/* The type's maximum would mean "unlimited", which only a policy may say. */
static uint64_t parse_u64(const char *option, const char *text)
{
	return parse_number(option, text, 1, UINT64_MAX - 1, false);
}

static uint32_t parse_u32(const char *option, const char *text)
{
	return (uint32_t)parse_number(option, text, 1, UINT32_MAX - 1, false);
}

static uint64_t parse_bytes(const char *option, const char *text)
{
	return parse_number(option, text, 1, UINT64_MAX - 1, true);
}

struct word {
	const char *name;
	int32_t value;
};

static int32_t parse_word(const char *option, const char *text, const struct word *words)
{
	for (const struct word *word = words; word->name; word++) {
		if (strcmp(text, word->name) == 0)
			return word->value;
	}
	fprintf(stderr, "agentd-run: --%s: '%s' is not one of", option, text);
	for (const struct word *word = words; word->name; word++)
		fprintf(stderr, " %s", word->name);
	fputs("\nTry 'agentd-run --help'.\n", stderr);
	exit(STATUS_FAILED);
}

/* The library takes absolute paths without "." and ".."; people type others. A
 * path with ".." has to exist: only the file system knows what it means. */
static char *absolute_path(const char *option, const char *path)
{
	char *cwd = NULL, *joined, *out;
	size_t len = 0;

	if (!*path)
		usage("--%s: the path is empty", option);
	if (strcmp(path, "..") == 0 || strncmp(path, "../", 3) == 0 || strstr(path, "/../") ||
	    (strlen(path) > 3 && strcmp(path + strlen(path) - 3, "/..") == 0)) {
		out = realpath(path, NULL);
		if (!out)
			usage("--%s: %s: %s", option, path, strerror(errno));
		return out;
	}
	if (*path != '/') {
		cwd = getcwd(NULL, 0);
		if (!cwd)
			usage("--%s: %s: current directory: %s", option, path, strerror(errno));
	}
	if (asprintf(&joined, "%s/%s", cwd ? cwd : "", path) < 0)
		die_nomem();
	out = malloc(strlen(joined) + 2);
	if (!out)
		die_nomem();
	for (const char *p = joined; *p;) {
		size_t n;

		p += strspn(p, "/");
		n = strcspn(p, "/");
		if (n > 0 && !(n == 1 && *p == '.')) {
			out[len++] = '/';
			memcpy(out + len, p, n);
			len += n;
		}
		p += n;
	}
	if (len == 0)
		out[len++] = '/';
	out[len] = '\0';
	free(joined);
	free(cwd);
	return out;
}

static char *read_json_file(const char *option, const char *path, size_t *ret_len)
{
	FILE *file = fopen(path, "re");
	char *text = malloc(JSON_FILE_MAX + 1);

	if (!text)
		die_nomem();
	if (!file)
		usage("--%s: %s: %s", option, path, strerror(errno));
	/* One byte more than the library takes, so that it refuses what is too long. */
	*ret_len = fread(text, 1, JSON_FILE_MAX + 1, file);
	if (ferror(file))
		usage("--%s: %s: %s", option, path, strerror(errno));
	fclose(file);
	return text;
}

/* Whether an object that the library has accepted has this member at its top. */
static bool json_has_member(const char *text, size_t len, const char *name)
{
	size_t start = 0, want = strlen(name);
	unsigned depth = 0;
	bool found = false;

	for (size_t i = 0; i < len; i++) {
		if (text[i] == '{' || text[i] == '[') {
			depth++;
		} else if (text[i] == '}' || text[i] == ']') {
			depth--;
		} else if (text[i] == '"') {
			size_t end;

			start = i + 1;
			for (i = start; text[i] != '"'; i++)
				i += text[i] == '\\';
			end = i;
			do
				i++;
			while (i < len && strchr(" \t\r\n", text[i]));
			if (depth == 1 && i < len && text[i] == ':') {
				if (memchr(text + start, '\\', end - start))
					usage("--context: escapes in the key \"%.*s\"",
					      (int)(end - start), text + start);
				if (end - start == want && !memcmp(text + start, name, want))
					found = true;
			}
			i--;
		}
	}
	return found;
}

static void allow_path(struct options *options, const char *option, const char *path,
		       uint32_t access)
{
	char *absolute = absolute_path(option, path);
	agentd_error *err = NULL;

	options->grants = option;
	if (agentd_policy_allow_path(options->policy, absolute, access, &err) < 0)
		usage("--%s: %s: %s", option, path, agentd_error_message(err));
	free(absolute);
}

static void deny_path(struct options *options, const char *path)
{
	char *absolute = absolute_path("deny", path);
	agentd_error *err = NULL;

	check(agentd_policy_deny_path(options->policy, absolute, &err), "--deny", path, &err);
	free(absolute);
}

/* HOST[:PORTS], where HOST may be an IPv6 address, in brackets if ports follow. The host; *ret
 * is what follows, or NULL. */
static char *split_host(const char *option, const char *text, const char **ret)
{
	const char *colon = strrchr(text, ':'), *close = strrchr(text, ']');
	char *host = strdup(text);

	if (!host)
		die_nomem();
	if (*text == '[') {
		if (!close || (close[1] && close[1] != ':'))
			usage("--%s: '%s' is not [ADDRESS] or [ADDRESS]:PORT", option, text);
		memmove(host, host + 1, (size_t)(close - text - 1));
		host[close - text - 1] = '\0';
		colon = close[1] ? close + 1 : NULL;
	} else if (colon && strchr(text, ':') == colon) {
		host[colon - text] = '\0';
	} else {
		colon = NULL;
	}
	*ret = colon ? colon + 1 : NULL;
	return host;
}

static void allow_host(struct options *options, const char *text)
{
	const char *given;
	char *host = split_host("allow-host", text, &given), *ports = NULL, *dash;
	uint16_t first = 0, last = 0;
	agentd_error *err = NULL;

	if (given) {
		ports = strdup(given);
		if (!ports)
			die_nomem();
		dash = strchr(ports, '-');
		if (dash)
			*dash++ = '\0';
		first = (uint16_t)parse_number("allow-host", ports, 1, UINT16_MAX, false);
		last = first;
		if (dash)
			last = (uint16_t)parse_number("allow-host", dash, first, UINT16_MAX, false);
	}
	options->grants = "allow-host";
	options->hosts_set = true;
	check(agentd_policy_allow_host(options->policy, host, first, last, &err), "--allow-host",
	      text, &err);
	free(ports);
	free(host);
}

static void deny_host(struct options *options, const char *text)
{
	const char *ports;
	char *host = split_host("deny-host", text, &ports);
	agentd_error *err = NULL;

	if (ports)
		usage("--deny-host: a denied host is denied on every port: '%s'", text);
	check(agentd_policy_deny_host(options->policy, host, &err), "--deny-host", text, &err);
	free(host);
}

/* NAME=STRICTNESS */
static void set_layer(struct options *options, const char *option, const char *text)
{
	static const struct word strictnesses[] = { { "required", AGENTD_PROTECTION_REQUIRED },
						    { "degradable", AGENTD_PROTECTION_DEGRADABLE },
						    { "off", AGENTD_PROTECTION_OFF },
						    { NULL, 0 } };
	const char *equals = strchr(text, '=');
	agentd_error *err = NULL;
	int32_t strictness;
	char *name;

	if (!equals)
		usage("--%s: '%s' is not NAME=STRICTNESS", option, text);
	strictness = parse_word(option, equals + 1, strictnesses);
	name = strndup(text, (size_t)(equals - text));
	if (!name)
		die_nomem();
	if (agentd_policy_set_protection(options->policy, name, strictness, &err) < 0)
		usage("--%s: %s", option, agentd_error_message(err));
	if (strictness != AGENTD_PROTECTION_REQUIRED)
		options->grants = option;
	free(name);
}

static void protect_name(struct options *options, const char *option, const char *name)
{
	agentd_error *err = NULL;

	if (agentd_policy_protect_name(options->policy, name, &err) < 0)
		usage("--%s: %s", option, agentd_error_message(err));
}

/* The token is the file but for the end of its last line. */
static void set_token(struct options *options, const char *option, const char *path)
{
	char text[TOKEN_MAX + 2];
	FILE *file = fopen(path, "re");
	agentd_error *err = NULL;
	size_t len;

	if (!file)
		usage("--%s: %s: %s", option, path, strerror(errno));
	setvbuf(file, NULL, _IONBF, 0);
	len = fread(text, 1, sizeof(text) - 1, file);
	if (ferror(file))
		usage("--%s: %s: %s", option, path, strerror(errno));
	fclose(file);
	if (len > 0 && text[len - 1] == '\n')
		len--;
	text[len] = '\0';
	if (memchr(text, '\0', len))
		usage("--%s: %s: the token has a byte 0", option, path);
	check(agentd_context_set_credentials(options->context, text, 0, &err), "--token-file", path,
	      &err);
	explicit_bzero(text, sizeof(text));
}

static void set_env(struct options *options, const char *text)
{
	const char *equals = strchr(text, '=');
	agentd_error *err = NULL;
	char *name;

	if (!equals || equals == text)
		usage("--env: '%s' is not NAME=VALUE", text);
	name = strndup(text, (size_t)(equals - text));
	if (!name)
		die_nomem();
	check(agentd_context_set_env(options->context, name, equals + 1, &err), "--env", text,
	      &err);
	free(name);
}

/* ---- the command line */

enum option_id {
	OPT_BACKEND = 256,
	OPT_MIN_ISOLATION,
	OPT_WORKDIR,
	OPT_TIMEOUT,
	OPT_READ,
	OPT_WRITE,
	OPT_EXEC,
	OPT_DENY,
	OPT_IMAGE,
	OPT_REQUIRE_KVM,
	OPT_SESSION,
	OPT_POOL,
	OPT_ALLOW_HOST,
	OPT_DENY_HOST,
	OPT_RESOLVER,
	OPT_NET,
	OPT_LAYER,
	OPT_PROTECT,
	OPT_NO_PROTECT,
	OPT_TOKEN_FILE,
	OPT_MEM,
	OPT_PIDS,
	OPT_CPU,
	OPT_OUTPUT,
	OPT_IO,
	OPT_ENV,
	OPT_IDLE,
	OPT_CPU_TIME,
	OPT_FILE,
	OPT_OPEN_FILES,
	OPT_NET_BYTES,
	OPT_POLICY,
	OPT_CONTEXT,
	OPT_PARAMS,
	OPT_NO_STDERR_LOG,
	OPT_KILL_ON_OUTPUT,
	OPT_STDIN,
	OPT_RESULT,
	OPT_EVENTS,
	OPT_QUIET,
	OPT_PROBE,
	OPT_NO_CACHE,
	OPT_VERSION,
	OPT_HELP,
};

static const struct option long_options[] = {
	{ "backend", required_argument, NULL, OPT_BACKEND },
	{ "min-isolation", required_argument, NULL, OPT_MIN_ISOLATION },
	{ "image", required_argument, NULL, OPT_IMAGE },
	{ "require-kvm", no_argument, NULL, OPT_REQUIRE_KVM },
	{ "session", required_argument, NULL, OPT_SESSION },
	{ "pool", required_argument, NULL, OPT_POOL },
	{ "workdir", required_argument, NULL, OPT_WORKDIR },
	{ "timeout-ms", required_argument, NULL, OPT_TIMEOUT },
	{ "read", required_argument, NULL, OPT_READ },
	{ "write", required_argument, NULL, OPT_WRITE },
	{ "exec", required_argument, NULL, OPT_EXEC },
	{ "deny", required_argument, NULL, OPT_DENY },
	{ "allow-host", required_argument, NULL, OPT_ALLOW_HOST },
	{ "deny-host", required_argument, NULL, OPT_DENY_HOST },
	{ "resolver", required_argument, NULL, OPT_RESOLVER },
	{ "net", required_argument, NULL, OPT_NET },
	{ "layer", required_argument, NULL, OPT_LAYER },
	{ "protect", required_argument, NULL, OPT_PROTECT },
	{ "no-protect", no_argument, NULL, OPT_NO_PROTECT },
	{ "token-file", required_argument, NULL, OPT_TOKEN_FILE },
	{ "mem", required_argument, NULL, OPT_MEM },
	{ "pids", required_argument, NULL, OPT_PIDS },
	{ "cpu-ms-per-100ms", required_argument, NULL, OPT_CPU },
	{ "output-bytes", required_argument, NULL, OPT_OUTPUT },
	{ "io-bytes", required_argument, NULL, OPT_IO },
	{ "env", required_argument, NULL, OPT_ENV },
	{ "idle-timeout-ms", required_argument, NULL, OPT_IDLE },
	{ "cpu-time-ms", required_argument, NULL, OPT_CPU_TIME },
	{ "file-bytes", required_argument, NULL, OPT_FILE },
	{ "open-files", required_argument, NULL, OPT_OPEN_FILES },
	{ "net-bytes", required_argument, NULL, OPT_NET_BYTES },
	{ "policy", required_argument, NULL, OPT_POLICY },
	{ "context", required_argument, NULL, OPT_CONTEXT },
	{ "params", required_argument, NULL, OPT_PARAMS },
	{ "no-stderr-log", no_argument, NULL, OPT_NO_STDERR_LOG },
	{ "kill-on-output", no_argument, NULL, OPT_KILL_ON_OUTPUT },
	{ "stdin", no_argument, NULL, OPT_STDIN },
	{ "result", required_argument, NULL, OPT_RESULT },
	{ "events", required_argument, NULL, OPT_EVENTS },
	{ "quiet", no_argument, NULL, OPT_QUIET },
	{ "probe", no_argument, NULL, OPT_PROBE },
	{ "no-cache", no_argument, NULL, OPT_NO_CACHE },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ "help", no_argument, NULL, OPT_HELP },
	{ NULL, 0, NULL, 0 },
};

static const char help_text[] =
	"Usage: agentd-run [OPTION]... [--] COMMAND [ARGUMENT]...\n"
	"       agentd-run --probe [--no-cache] [--result FILE] [--quiet]\n"
	"Run COMMAND through libagentd. One word is a script for the shell; with\n"
	"ARGUMENTs it is a program, and no shell is involved.\n"
	"\n"
	"What to run\n"
	"  --params FILE.json      command and timeout from a tool call\n"
	"  --stdin                 pass standard input on; else it is /dev/null\n"
	"  --env NAME=VALUE        set a variable of the command's environment\n"
	"  --workdir DIR           working directory (default: the current one)\n"
	"  --token-file FILE       give the command this token as a private file\n"
	"  --context FILE.json     where and as whom, as agentd_context(5)\n"
	"  --session UUID          in a persistent session of the pool\n"
	"  --pool FILE.json        where sessions are kept, as agentd_pool(5)\n"
	"Isolation and what is allowed\n"
	"  --backend NAME          sandbox (default), host, or microvm, which is the default for\n"
	"                          --min-isolation vm\n"
	"  --min-isolation LEVEL   none, sandbox (default) or vm\n"
	"  --image DIR             what virtual machines boot from (scripts/build-image)\n"
	"  --require-kvm           no virtual machine without hardware acceleration\n"
	"  --policy FILE.json      replaces the default policy, as agentd_policy(5)\n"
	"  --read PATH  --write PATH  --exec PATH  --deny PATH\n"
	"                          allow reading, writing too, executing too; or hide\n"
	"  --net MODE              none (default), allow or full\n"
	"  --allow-host HOST[:PORT]  allow one host; implies --net allow\n"
	"  --deny-host HOST        deny one that is allowed otherwise\n"
	"  --resolver ADDRESS      name server for allowed hosts (default: the system's)\n"
	"  --protect NAME          nothing may change NAME in a writable directory\n"
	"  --no-protect            change also what is protected by default\n"
	"  --layer NAME=STRICTNESS  required (default), degradable or off\n"
	"Limits (BYTES take K, M, G or T: powers of 1024)\n"
	"  --timeout-ms N          wall clock (default 30000)\n"
	"  --idle-timeout-ms N     without output or input\n"
	"  --cpu-time-ms N         user and system time of the whole tree\n"
	"  --cpu-ms-per-100ms N    share of CPU: 100 is one whole CPU\n"
	"  --mem BYTES  --pids N  --open-files N  --file-bytes BYTES  --io-bytes BYTES\n"
	"  --net-bytes BYTES       to and from allowed hosts, together\n"
	"  --output-bytes BYTES    delivered output; the rest is dropped and counted\n"
	"  --kill-on-output        end the command at --output-bytes instead\n"
	"What to report\n"
	"  --result FILE           result as JSON ('-': standard error)\n"
	"  --events FILE           every event as a line of JSON ('-': standard error)\n"
	"  --no-stderr-log         do not repeat stderr as a log line at the end\n"
	"  --quiet                 no log lines\n"
	"What this machine can do\n"
	"  --probe                 try it and say so, instead of running a command\n"
	"  --no-cache              whatever was found since the machine started\n"
	"\n"
	"  --version  --help\n"
	"\n"
	"Exit status: the command's; 124 timeout; 125 agentd-run or the library failed;\n"
	"126 denied; 128+N ended by signal N; 137 killed by a limit; 159 by the system\n"
	"call filter.\n";

/* Only whole names: an abbreviation could mean something else in a later release. */
static void refuse_abbreviation(char **argv, const char *name)
{
	const char *word = argv[optind - 1];

	if (optarg == word)
		word = argv[optind - 2];
	if (strcspn(word + 2, "=") != strlen(name))
		usage("unrecognized option '%.*s'", (int)strcspn(word, "="), word);
}

static void apply_option(struct options *options, int id, const char *name, const char *value)
{
	static const struct word isolations[] = { { "none", AGENTD_ISOLATION_NONE },
						  { "sandbox", AGENTD_ISOLATION_SANDBOX },
						  { "vm", AGENTD_ISOLATION_VM },
						  { NULL, 0 } };
	static const struct word nets[] = { { "none", AGENTD_NET_NONE },
					    { "allow", AGENTD_NET_ALLOWLIST },
					    { "full", AGENTD_NET_FULL },
					    { NULL, 0 } };
	struct agentd_limits *limits = &options->limits;

	switch (id) {
	case OPT_BACKEND:
		options->backend = value;
		break;
	case OPT_MIN_ISOLATION:
		options->min_isolation = parse_word(name, value, isolations);
		options->min_isolation_set = true;
		break;
	case OPT_IMAGE:
		options->image = value;
		break;
	case OPT_REQUIRE_KVM:
		options->require_kvm = true;
		break;
	case OPT_SESSION:
		options->session = value;
		break;
	case OPT_POOL:
		options->pool_file = value;
		break;
	case OPT_WORKDIR:
		options->workdir = value;
		break;
	case OPT_TIMEOUT:
		/* As in the parameters' JSON: 0 is the shortest there is. */
		limits->timeout_ms = parse_number(name, value, 0, UINT64_MAX - 1, false);
		limits->timeout_ms += limits->timeout_ms == 0;
		break;
	case OPT_READ:
		allow_path(options, name, value, AGENTD_ACCESS_READ);
		break;
	case OPT_WRITE:
		allow_path(options, name, value, AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE);
		break;
	case OPT_EXEC:
		allow_path(options, name, value, AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC);
		break;
	case OPT_DENY:
		deny_path(options, value);
		break;
	case OPT_ALLOW_HOST:
		allow_host(options, value);
		break;
	case OPT_DENY_HOST:
		deny_host(options, value);
		break;
	case OPT_RESOLVER:
		options->resolver = value;
		break;
	case OPT_NET:
		options->net = parse_word(name, value, nets);
		options->net_set = true;
		break;
	case OPT_LAYER:
		set_layer(options, name, value);
		break;
	case OPT_PROTECT:
		protect_name(options, name, value);
		break;
	case OPT_TOKEN_FILE:
		set_token(options, name, value);
		break;
	case OPT_MEM:
		limits->mem_bytes = parse_bytes(name, value);
		break;
	case OPT_PIDS:
		limits->pids_max = parse_u32(name, value);
		break;
	case OPT_CPU:
		limits->cpu_ms_per_100ms = parse_u32(name, value);
		break;
	case OPT_OUTPUT:
		limits->output_bytes = parse_bytes(name, value);
		break;
	case OPT_IO:
		limits->io_bytes = parse_bytes(name, value);
		break;
	case OPT_ENV:
		set_env(options, value);
		break;
	case OPT_IDLE:
		limits->idle_timeout_ms = parse_u64(name, value);
		break;
	case OPT_CPU_TIME:
		limits->cpu_time_ms = parse_u64(name, value);
		break;
	case OPT_FILE:
		limits->file_bytes = parse_bytes(name, value);
		break;
	case OPT_NET_BYTES:
		limits->net_bytes = parse_bytes(name, value);
		break;
	case OPT_OPEN_FILES:
		limits->open_files_max = parse_u32(name, value);
		break;
	case OPT_PARAMS:
		options->params_file = value;
		break;
	case OPT_NO_STDERR_LOG:
		options->no_stderr_log = true;
		break;
	case OPT_KILL_ON_OUTPUT:
		options->kill_on_output = true;
		break;
	case OPT_STDIN:
		options->stdin_open = true;
		break;
	case OPT_EVENTS:
		options->events_file = value;
		break;
	default: /* parse_files() */
		break;
	}
}

static _Noreturn void print_and_exit(const char *text)
{
	if (fputs(text, stdout) == EOF || fflush(stdout) == EOF) {
		complain("standard output: %s", strerror(errno));
		exit(STATUS_FAILED);
	}
	exit(0);
}

/* What a context with a policy of its own is checked against when --policy does
 * not say: nothing stands in its way but the other options. */
static void open_wide(agentd_policy *policy)
{
	static const char *const layers[] = { "userns",  "mountns",      "pidns",    "netns",
					      "ipcns",   "utsns",        "cgroupns", "landlock",
					      "seccomp", "capabilities", "keyring",  "rlimits",
					      "cgroup",  "idmap" };
	struct agentd_limits limits;
	agentd_error *err = NULL;

	agentd_limits_init(&limits, sizeof(limits));
	limits.timeout_ms = limits.idle_timeout_ms = limits.cpu_time_ms = UINT64_MAX;
	limits.mem_bytes = limits.io_bytes = limits.output_bytes = limits.file_bytes = UINT64_MAX;
	limits.net_bytes = UINT64_MAX;
	limits.pids_max = limits.cpu_ms_per_100ms = limits.open_files_max = UINT32_MAX;
	check(agentd_policy_allow_path(policy, "/",
				       AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE |
					       AGENTD_ACCESS_EXEC,
				       &err),
	      "policy", NULL, &err);
	for (size_t i = 0; i < sizeof(layers) / sizeof(layers[0]); i++)
		check(agentd_policy_set_protection(policy, layers[i], AGENTD_PROTECTION_OFF, &err),
		      "policy", NULL, &err);
	check(agentd_policy_set_net(policy, AGENTD_NET_FULL, &err), "policy", NULL, &err);
	check(agentd_policy_allow_env(policy, "*", &err), "policy", NULL, &err);
	check(agentd_policy_set_limits(policy, &limits, &err), "policy", NULL, &err);
	check(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, &err), "policy", NULL,
	      &err);
}

/* The working directory, writable, and the system's programs. */
static void allow_defaults(agentd_policy *policy, const char *workdir)
{
	static const char *const programs[] = { "/usr",   "/bin",   "/sbin",   "/lib",
						"/lib32", "/lib64", "/libx32", "/opt" };
	agentd_error *err = NULL;
	struct stat st;

	if (workdir)
		check(agentd_policy_allow_path(policy, workdir,
					       AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE |
						       AGENTD_ACCESS_EXEC,
					       &err),
		      "--workdir", workdir, &err);
	for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
		if (lstat(programs[i], &st) == 0)
			check(agentd_policy_allow_path(policy, programs[i],
						       AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
						       &err),
			      "policy", NULL, &err);
	}
}

/* Files and what decides what is to be done; then everything that adds to it. */
static void parse_files(struct options *options, int argc, char **argv)
{
	int id, index = 0;

	while ((id = getopt_long(argc, argv, "+", long_options, &index)) != -1) {
		if (id == '?') {
			fputs("Try 'agentd-run --help'.\n", stderr);
			exit(STATUS_FAILED);
		}
		refuse_abbreviation(argv, long_options[index].name);
		if (id == OPT_HELP)
			print_and_exit(help_text);
		if (id == OPT_VERSION) {
			printf("agentd-run %s (libevent %s)\n", agentd_version_string(),
			       event_get_version());
			print_and_exit("");
		}
		if (id == OPT_NO_PROTECT)
			options->no_protect = true;
		if (id == OPT_POLICY)
			options->policy_file = optarg;
		if (id == OPT_CONTEXT)
			options->context_file = optarg;
		if (id == OPT_RESULT)
			options->result_file = optarg;
		if (id == OPT_QUIET)
			options->quiet = true;
		if (id == OPT_PROBE)
			options->probe = true;
		else if (id == OPT_NO_CACHE)
			options->no_cache = true;
		else if (id != OPT_RESULT && id != OPT_QUIET)
			options->not_probe = long_options[index].name;
	}
	options->command = argv + optind;
	options->command_len = argc - optind;
	if (options->probe && options->command_len > 0)
		usage("--probe: it runs no command");
	if (options->probe && options->not_probe)
		usage("--probe: --%s has no effect on it", options->not_probe);
	if (options->no_cache && !options->probe)
		usage("--no-cache needs --probe");
}

static void parse_command_line(struct options *options, int argc, char **argv)
{
	bool own_policy = false, own_workdir = false;
	char *text = NULL, *workdir = NULL;
	agentd_error *err = NULL;
	int id, index = 0;
	size_t len;

	if (options->context_file) {
		text = read_json_file("context", options->context_file, &len);
		check(agentd_context_from_json(text, len, &options->context, &err), "--context",
		      options->context_file, &err);
		own_policy = json_has_member(text, len, "policy");
		own_workdir = json_has_member(text, len, "workdir");
		free(text);
	} else {
		check(agentd_context_new(&options->context, &err), "context", NULL, &err);
	}
	if (options->policy_file) {
		text = read_json_file("policy", options->policy_file, &len);
		check(agentd_policy_from_json(text, len, &options->policy, &err), "--policy",
		      options->policy_file, &err);
		free(text);
	} else if (options->no_protect || own_policy) {
		static const char none[] = "{\"protect_names\": []}";

		check(agentd_policy_from_json(none, strlen(none), &options->policy, &err), "policy",
		      NULL, &err);
		if (own_policy)
			open_wide(options->policy);
	} else {
		check(agentd_policy_new(&options->policy, &err), "policy", NULL, &err);
	}
	if (options->no_protect && (options->policy_file || own_policy))
		usage("--no-protect: there is a policy file; empty its protect_names");

	optind = 0; /* GNU: start over */
	while ((id = getopt_long(argc, argv, "+", long_options, &index)) != -1)
		apply_option(options, id, long_options[index].name, optarg);

	if (options->params_file && options->command_len > 0)
		usage("a command and --params: give one of them");
	if (!options->params_file && options->command_len == 0)
		usage("no command");
	if (own_policy && options->grants)
		usage("--%s: the context in %s has a policy of its own; allow it there",
		      options->grants, options->context_file);
	if (options->hosts_set && options->net_set && options->net != AGENTD_NET_ALLOWLIST)
		usage("--allow-host needs --net allow");

	if (options->workdir) {
		workdir = absolute_path("workdir", options->workdir);
	} else if (!own_workdir) {
		workdir = getcwd(NULL, 0);
		if (!workdir)
			usage("current directory: %s", strerror(errno));
	}
	if (workdir)
		check(agentd_context_set_workdir(options->context, workdir, &err), "--workdir",
		      workdir, &err);
	if (options->backend)
		check(agentd_context_set_backend(options->context, options->backend, &err),
		      "--backend", options->backend, &err);
	if (options->session)
		check(agentd_context_set_session(options->context, options->session, NULL, NULL,
						 &err),
		      "--session", options->session, &err);
	if (!options->policy_file && !own_policy)
		allow_defaults(options->policy, workdir);
	if (options->min_isolation_set)
		check(agentd_policy_set_min_isolation(options->policy, options->min_isolation,
						      &err),
		      "--min-isolation", NULL, &err);
	if (options->require_kvm)
		check(agentd_policy_require_kvm(options->policy, &err), "--require-kvm", NULL,
		      &err);
	if (options->hosts_set)
		options->net = AGENTD_NET_ALLOWLIST;
	if (options->hosts_set || options->net_set)
		check(agentd_policy_set_net(options->policy, options->net, &err), "--net", NULL,
		      &err);
	if (!own_policy)
		check(agentd_context_set_policy(options->context, options->policy, &err), "policy",
		      NULL, &err);
	free(workdir);
}

static agentd_params *make_params(const struct options *options)
{
	const char *const *argv = (const char *const *)options->command;
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	char *text;
	size_t len;

	if (options->params_file) {
		text = read_json_file("params", options->params_file, &len);
		check(agentd_params_parse(text, len, &params, &err), "--params",
		      options->params_file, &err);
		free(text);
	} else if (options->command_len == 1) {
		check(agentd_params_new_shell(argv[0], options->limits.timeout_ms, &params, &err),
		      "command", NULL, &err);
	} else {
		check(agentd_params_new_argv(argv, options->limits.timeout_ms, &params, &err),
		      "command", NULL, &err);
	}
	return params;
}

/* ---- events as lines of JSON */

/* Length of the well-formed UTF-8 sequence at s, 0 if it is none. */
static size_t utf8_sequence(const unsigned char *s)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t len;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	if (s[0] == 0xe0)
		low = 0xa0;
	else if (s[0] == 0xed)
		high = 0x9f;
	else if (s[0] == 0xf0)
		low = 0x90;
	else if (s[0] == 0xf4)
		high = 0x8f;
	if (s[1] < low || s[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++) {
		if (s[i] < 0x80 || s[i] > 0xbf)
			return 0;
	}
	return len;
}

static void put_json_string(FILE *file, const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	putc('"', file);
	while (*s) {
		size_t len = utf8_sequence(s);

		if (len == 0)
			fputs("\\ufffd", file);
		else if (*s < 0x20 || *s == '"' || *s == '\\' || *s == 0x7f)
			fprintf(file, "\\u%04x", *s);
		else
			fwrite(s, 1, len, file);
		s += len ? len : 1;
	}
	putc('"', file);
}

static void put_json_member(FILE *file, const char *key, const char *value)
{
	putc(',', file);
	put_json_string(file, key);
	putc(':', file);
	put_json_string(file, value);
}

static bool event_begin(struct run *run, const char *name)
{
	struct timespec now;
	int64_t us;

	if (!run->events)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &now);
	us = (now.tv_sec - run->start.tv_sec) * 1000000 + (now.tv_nsec - run->start.tv_nsec) / 1000;
	fprintf(run->events, "{\"ms\":%" PRId64 ".%03d,\"event\":\"%s\"", us / 1000,
		(int)(us % 1000), name);
	return true;
}

static void event_end(struct run *run)
{
	fputs("}\n", run->events);
	if (fflush(run->events) == EOF && !run->failed) {
		complain("--events: %s", strerror(errno));
		run->failed = true;
	}
}

static const char *level_name(int32_t level)
{
	static const char *const names[] = { "error", "warn", "info", "debug" };

	return level >= AGENTD_LOG_ERROR && level <= AGENTD_LOG_DEBUG ? names[level] : "unknown";
}

static void event_log(struct run *run, const char *name, const agentd_log_record *record)
{
	if (!event_begin(run, name))
		return;
	put_json_member(run->events, "level", level_name(agentd_log_record_level(record)));
	put_json_member(run->events, "component", agentd_log_record_component(record));
	put_json_member(run->events, "message", agentd_log_record_message(record));
	fputs(",\"fields\":{", run->events);
	for (size_t i = 0; i < agentd_log_record_field_count(record); i++) {
		if (i > 0)
			putc(',', run->events);
		put_json_string(run->events, agentd_log_record_field_key(record, i));
		putc(':', run->events);
		put_json_string(run->events, agentd_log_record_field_value(record, i));
	}
	putc('}', run->events);
	event_end(run);
}

/* ---- standard input */

static void input_stop(struct input *input)
{
	input->open = false;
	if (input->readable)
		event_free(input->readable);
	input->readable = NULL;
}

static void input_fill(struct run *run)
{
	struct input *input = &run->input;
	ssize_t n = read(STDIN_FILENO, input->buf, sizeof(input->buf));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n < 0) {
		complain("standard input: %s", strerror(errno));
		run->failed = true;
		agentd_exec_cancel(run->exec);
	}
	input->eof = n <= 0;
	input->off = 0;
	input->len = n > 0 ? (size_t)n : 0;
}

/* Hand over what there is, then wait for whichever side is not ready. */
static void input_pump(struct run *run)
{
	struct input *input = &run->input;

	while (input->open) {
		size_t taken = 0;
		int rc;

		if (input->off < input->len) {
			rc = agentd_exec_write(run->exec, input->buf + input->off,
					       input->len - input->off, &taken);
			if (rc == AGENTD_ERR_AGAIN)
				return; /* on_stdin_drained() goes on */
			if (rc < 0)
				input_stop(input); /* the reader is gone */
			input->off += taken;
		} else if (input->eof) {
			agentd_exec_close_stdin(run->exec);
			input_stop(input);
		} else if (input->readable) {
			event_add(input->readable, NULL);
			return;
		} else {
			input_fill(run);
		}
	}
}

static void on_stdin_readable(evutil_socket_t fd, short what, void *userdata)
{
	struct run *run = userdata;

	(void)fd;
	(void)what;
	input_fill(run);
	input_pump(run);
}

/* Regular files and some devices cannot be polled: they are always ready. */
static void input_prepare(struct run *run)
{
	struct epoll_event event = { .events = EPOLLIN };
	int epoll = epoll_create1(EPOLL_CLOEXEC), rc;

	if (epoll < 0) {
		complain("epoll_create1: %s", strerror(errno));
		exit(STATUS_FAILED);
	}
	rc = epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	if (rc < 0 && errno != EPERM)
		usage("--stdin: %s", strerror(errno));
	close(epoll);
	if (rc == 0) {
		run->input.readable = event_new(run->base, STDIN_FILENO, EV_READ, on_stdin_readable,
						run);
		if (!run->input.readable)
			die_nomem();
	}
	run->input.open = true;
}

/* ---- callbacks of the execution */

static void on_started(agentd_exec *exec, void *userdata)
{
	struct run *run = userdata;

	if (event_begin(run, "started")) {
		put_json_member(run->events, "id", agentd_exec_id(exec));
		event_end(run);
	}
	input_pump(run);
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct run *run = userdata;

	(void)exec;
	(void)data;
	if (event_begin(run, "output")) {
		put_json_member(run->events, "stream",
				stream == AGENTD_STDERR ? "stderr" : "stdout");
		fprintf(run->events, ",\"bytes\":%zu", len);
		event_end(run);
	}
	return AGENTD_SINK_CONTINUE;
}

static void on_stdin_drained(agentd_exec *exec, void *userdata)
{
	struct run *run = userdata;

	(void)exec;
	if (event_begin(run, "stdin_drained"))
		event_end(run);
	input_pump(run);
}

/* Empty if it has none of that name. */
static const char *log_field(const agentd_log_record *record, const char *key)
{
	for (size_t i = 0; i < agentd_log_record_field_count(record); i++) {
		if (strcmp(agentd_log_record_field_key(record, i), key) == 0)
			return agentd_log_record_field_value(record, i);
	}
	return "";
}

static int32_t on_log(agentd_exec *exec, const agentd_log_record *record, void *userdata)
{
	int32_t level = agentd_log_record_level(record);
	const char *why = log_field(record, "error");
	struct run *run = userdata;

	(void)exec;
	event_log(run, "log", record);
	if (!run->quiet)
		fprintf(stderr, "agentd: %s%s%s%s%s\n",
			level == AGENTD_LOG_INFO ? "" : level_name(level),
			level == AGENTD_LOG_INFO ? "" : ": ", agentd_log_record_message(record),
			*why ? ": " : "", why);
	return 0;
}

static void on_denied(agentd_exec *exec, const agentd_denial *denial, void *userdata)
{
	struct run *run = userdata;

	(void)exec;
	if (event_begin(run, "denied")) {
		put_json_member(run->events, "kind", agentd_denial_kind(denial));
		put_json_member(run->events, "target", agentd_denial_target(denial));
		put_json_member(run->events, "rule", agentd_denial_rule(denial));
		put_json_member(run->events, "remedy", agentd_denial_remedy(denial));
		event_end(run);
	}
	if (!run->quiet)
		fprintf(stderr, "agentd: denied %s: %s (%s) %s\n", agentd_denial_kind(denial),
			agentd_denial_target(denial), agentd_denial_rule(denial),
			agentd_denial_remedy(denial));
}

static void on_exited(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata)
{
	struct run *run = userdata;

	(void)exec;
	if (event_begin(run, "exited")) {
		fputs(",\"exit_code\":", run->events);
		if (exit_code >= 0)
			fprintf(run->events, "%d", exit_code);
		else
			fputs("null", run->events);
		fputs(",\"signal\":", run->events);
		if (signo > 0)
			fprintf(run->events, "%d", signo);
		else
			fputs("null", run->events);
		event_end(run);
	}
}

static int exit_status(const struct run *run, const agentd_result *result)
{
	switch (agentd_result_status(result)) {
	case AGENTD_STATUS_OK:
		return 0;
	case AGENTD_STATUS_TIMEOUT:
		return STATUS_TIMEOUT;
	case AGENTD_STATUS_DENIED:
		return STATUS_DENIED;
	default:
		break;
	}
	switch (agentd_result_cause(result)) {
	case AGENTD_CAUSE_EXITED:
		return agentd_result_exit_code(result);
	case AGENTD_CAUSE_SIGNALED:
		return STATUS_SIGNALED + agentd_result_signal(result);
	case AGENTD_CAUSE_CANCELED:
		return run->signo ? STATUS_SIGNALED + run->signo : STATUS_FAILED;
	case AGENTD_CAUSE_CPU_TIME:
	case AGENTD_CAUSE_MEMORY:
	case AGENTD_CAUSE_PIDS:
	case AGENTD_CAUSE_IO:
	case AGENTD_CAUSE_OUTPUT:
	case AGENTD_CAUSE_FILE_SIZE:
		return STATUS_LIMIT;
	case AGENTD_CAUSE_VIOLATION: /* as when the kernel ends it for that */
		return STATUS_SIGNALED + SIGSYS;
	default: /* spawn, backend_lost, sink, and what a later library knows */
		return STATUS_FAILED;
	}
}

/* json: what rc says was made. */
static void write_json(struct run *run, int rc, char *json, agentd_error *err)
{
	if (rc < 0) {
		complain("result: %s", agentd_error_message(err));
		agentd_error_unref(err);
		run->failed = true;
		return;
	}
	if (fprintf(run->result, "%s\n", json) < 0 || fflush(run->result) == EOF) {
		complain("--result: %s", strerror(errno));
		run->failed = true;
	}
	agentd_free(json);
}

static void write_result(struct run *run, agentd_result *result)
{
	agentd_error *err = NULL;
	char *json = NULL;
	int rc = agentd_result_to_json(result, &json, NULL, &err);

	write_json(run, rc, json, err);
}

/* Which of our outputs nobody reads any more; the sink keeps no more than that a
 * write failed. */
static const char *broken_output(void)
{
	struct pollfd fds[] = { { .fd = STDOUT_FILENO, .events = POLLOUT },
				{ .fd = STDERR_FILENO, .events = POLLOUT } };

	if (poll(fds, 2, 0) > 0 && fds[0].revents & POLLERR)
		return "standard output: Broken pipe";
	return fds[1].revents & POLLERR ? "standard error: Broken pipe" :
					  "standard output or error";
}

/* What the command wrote last may be lost after it ended well. */
static void check_delivery(struct run *run, const agentd_result *result)
{
	uint64_t dropped = 0;

	if (agentd_result_cause(result) != AGENTD_CAUSE_EXITED ||
	    strcmp(agentd_result_limit(result), "output_bytes") == 0)
		return;
	agentd_result_metric(result, AGENTD_METRIC_DROPPED_BYTES, &dropped);
	if (dropped > 0) {
		complain("%s: the last %" PRIu64 " bytes could not be written", broken_output(),
			 dropped);
		run->failed = true;
	}
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	struct run *run = userdata;

	(void)runner;
	event_base_loopbreak(run->base);
}

/* The file that an error's pointer is into, or NULL: what options say has none. */
static const char *file_of(const struct options *options, const char *pointer)
{
	const struct {
		const char *start, *file;
	} files[] = {
		{ "/paths/", options->policy_file },   { "/policy/", options->context_file },
		{ "/mounts/", options->context_file }, { "/rootfs", options->context_file },
		{ "/vm/", options->pool_file },
	};

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		if (strncmp(pointer, files[i].start, strlen(files[i].start)) == 0)
			return files[i].file;
	}
	return NULL;
}

static void complain_of(const struct run *run, const agentd_error *err)
{
	const char *pointer = agentd_error_pointer(err), *file = file_of(run->options, pointer);

	complain("%s%s%s%s%s%s", agentd_error_message(err), *pointer ? " (at " : "", pointer,
		 file ? " in " : "", file ? file : "", *pointer ? ")" : "");
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct run *run = userdata;
	const agentd_error *err = agentd_result_error(result);

	(void)exec;
	input_stop(&run->input);
	if (event_begin(run, "finished")) {
		put_json_member(run->events, "status",
				agentd_status_name(agentd_result_status(result)));
		put_json_member(run->events, "cause",
				agentd_cause_name(agentd_result_cause(result)));
		event_end(run);
	}
	if (agentd_result_cause(result) == AGENTD_CAUSE_SINK)
		complain("%s: %s", broken_output(), agentd_error_message(err));
	else if (err)
		complain_of(run, err);
	else
		check_delivery(run, result);
	if (run->result)
		write_result(run, result);
	run->status = exit_status(run, result);
	if (agentd_runner_shutdown(run->runner, SESSION_GRACE_MS, on_gone, run) < 0)
		event_base_loopbreak(run->base);
}

static void on_runner_log(const agentd_log_record *record, void *userdata)
{
	event_log(userdata, "runner_log", record);
}

/* ---- main */

static void on_signal(evutil_socket_t signo, short what, void *userdata)
{
	struct run *run = userdata;

	(void)what;
	if (!run->exec)
		return;
	if (run->signo == 0) {
		run->signo = (int)signo;
		agentd_exec_cancel(run->exec);
	} else {
		agentd_exec_kill(run->exec);
	}
}

static void watch_signals(struct run *run)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action;

	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
		if (signals[i] == SIGHUP && sigaction(SIGHUP, NULL, &action) == 0 &&
		    action.sa_handler == SIG_IGN)
			continue; /* nohup */
		run->signals[i] = evsignal_new(run->base, signals[i], on_signal, run);
		if (!run->signals[i] || event_add(run->signals[i], NULL) < 0)
			die_nomem();
	}
}

/* With 0, 1 or 2 closed the next open would become our input or output. What is
 * put there instead cannot be read or written either. */
static void fill_standard_fds(void)
{
	for (int fd = 0; fd <= 2; fd++) {
		int ends[2], broken;

		if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
			continue;
		if (fd == 0) {
			broken = open("/dev/null", O_WRONLY);
		} else if (pipe(ends) == 0) {
			/* ends[0] is fd: it goes, and with it all who could read. */
			broken = dup2(ends[1], fd);
			close(ends[1]);
		} else {
			broken = -1;
		}
		if (broken != fd)
			exit(STATUS_FAILED);
	}
}

static FILE *open_report(const char *option, const char *path)
{
	FILE *file;

	if (!path)
		return NULL;
	if (strcmp(path, "-") == 0)
		return stderr;
	file = fopen(path, "we");
	if (!file)
		usage("--%s: %s: %s", option, path, strerror(errno));
	return file;
}

/* What is in it stays until something is written. *ret_made: it was not there before. */
static FILE *reserve_report(const char *option, const char *path, bool *ret_made)
{
	const int flags = O_WRONLY | O_CREAT | O_CLOEXEC;
	FILE *file;
	int fd;

	*ret_made = false;
	if (!path || strcmp(path, "-") == 0)
		return open_report(option, path);
	fd = open(path, flags | O_EXCL, 0666);
	*ret_made = fd >= 0;
	if (fd < 0)
		fd = open(path, flags, 0666);
	file = fd < 0 ? NULL : fdopen(fd, "w");
	if (!file)
		usage("--%s: %s: %s", option, path, strerror(errno));
	return file;
}

/* Where one would write over the other. */
static bool same_file(FILE *a, FILE *b)
{
	struct stat x, y;

	return a && b && a != b && fstat(fileno(a), &x) == 0 && fstat(fileno(b), &y) == 0 &&
	       S_ISREG(x.st_mode) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void empty_report(FILE *file)
{
	/* Not everything has a length. */
	if (file && file != stderr && ftruncate(fileno(file), 0) < 0 && errno != EINVAL)
		complain("--result: %s", strerror(errno));
}

static void close_report(struct run *run, const char *option, FILE *file)
{
	if (file && file != stderr && fclose(file) == EOF && !run->failed) {
		complain("--%s: %s", option, strerror(errno));
		run->failed = true;
	}
}

static agentd_sink *make_sink(struct run *run)
{
	struct agentd_sink_ops ops = { .size = sizeof(ops),
				       .started = on_started,
				       .stdin_drained = on_stdin_drained,
				       .log = on_log,
				       .denied = on_denied,
				       .exited = on_exited,
				       .finished = on_finished };
	agentd_sink *output = NULL, *events = NULL, *tee = NULL;
	agentd_error *err = NULL;

	if (run->events)
		ops.output = on_output;
	check(agentd_sink_new_fd(STDOUT_FILENO, STDERR_FILENO, &output, &err), "sink", NULL, &err);
	check(agentd_sink_new(&ops, run, &events, &err), "sink", NULL, &err);
	check(agentd_sink_new_tee(output, events, &tee, &err), "sink", NULL, &err);
	agentd_sink_unref(output);
	agentd_sink_unref(events);
	return tee;
}

static void use_pool(struct run *run, const char *file)
{
	agentd_pool *pool = NULL;
	agentd_error *err = NULL;
	size_t len;
	char *text = read_json_file("pool", file, &len);

	check(agentd_pool_new(run->runner, text, len, &pool, &err), "--pool", file, &err);
	check(agentd_runner_set_pool(run->runner, pool, &err), "--pool", file, &err);
	agentd_pool_unref(pool); /* the runner has it now */
	free(text);
}

static void run_command(struct run *run, const struct options *options, agentd_params *params)
{
	struct agentd_runner_opts runner_opts = { .size = sizeof(runner_opts),
						  .event_base = run->base,
						  .policy = options->policy,
						  .log = run->events ? on_runner_log : NULL,
						  .log_userdata = run,
						  .log_level = AGENTD_LOG_DEBUG,
						  /* There is no next command. */
						  .sandbox_prewarm = UINT32_MAX,
						  .microvm_image = options->image,
						  .net_resolver = options->resolver };
	struct agentd_exec_opts exec_opts = { .size = sizeof(exec_opts),
					      .limits = &options->limits };
	agentd_sink *sink = make_sink(run);
	agentd_error *err = NULL;
	bool made;

	if (options->no_stderr_log)
		runner_opts.flags |= AGENTD_RUNNER_NO_STDERR_LOG;
	if (options->stdin_open)
		exec_opts.flags |= AGENTD_EXEC_STDIN_OPEN;
	if (options->kill_on_output)
		exec_opts.flags |= AGENTD_EXEC_KILL_ON_OUTPUT;
	check(agentd_runner_new(&runner_opts, &run->runner, &err), "runner", NULL, &err);
	if (options->pool_file)
		use_pool(run, options->pool_file);
	run->result = reserve_report("result", options->result_file, &made);
	if (same_file(run->result, run->events))
		usage("--result and --events are the same file");
	/* Not before: what was opened may have waited for a reader. */
	watch_signals(run);
	clock_gettime(CLOCK_MONOTONIC, &run->start);
	if (agentd_exec_start(run->runner, options->context, params, sink, &exec_opts, &run->exec,
			      &err) < 0) {
		complain_of(run, err);
		agentd_error_unref(err);
		/* There is no result of what was not even begun. */
		if (made)
			unlink(options->result_file);
		if (agentd_runner_shutdown(run->runner, 0, on_gone, run) < 0)
			event_base_loopbreak(run->base);
	} else {
		empty_report(run->result);
	}
	agentd_sink_unref(sink);
	if (event_base_dispatch(run->base) < 0) {
		complain("event_base_dispatch failed");
		run->failed = true;
	}
	agentd_exec_unref(run->exec);
	agentd_runner_unref(run->runner);
}

/* ---- --probe */

static const char *act_word(int32_t verdict)
{
	return verdict == AGENTD_ACT_POSSIBLE ? "possible" :
	       verdict == AGENTD_ACT_REFUSED  ? "refused" :
						"not tried";
}

static void print_probe(const agentd_probe *probe)
{
	static const char *const states[] = { "absent", "degraded", "enforced" };
	const char *name, *text;
	int32_t outside, inside, state;

	printf("%-42s %-10s %s\n", "ACT", "WITHOUT", "IN THE SANDBOX");
	for (size_t i = 0; agentd_probe_act_at(probe, i, &name, &outside, &inside, &text) == 0; i++)
		printf("%-42s %-10s %s%s%s\n", name, act_word(outside), act_word(inside),
		       *text ? ": " : "", text);
	printf("\n%-14s %-10s %s\n", "LAYER", "STATE", "HOW, OR WHY NOT");
	for (size_t i = 0; agentd_probe_layer_at(probe, i, &name, &state, &text) == 0; i++)
		printf("%-14s %-10s %s\n", name, states[state + 1], text);
	printf("\n%-14s %-10s %s\n", "CAPABILITY", "LEVEL", "WHY NOT");
	for (int32_t cap = 1; strcmp(agentd_cap_name(cap), "unknown") != 0; cap++)
		printf("%-14s %-10d %s\n", agentd_cap_name(cap), agentd_probe_level(probe, cap),
		       agentd_probe_reason(probe, cap));
	if (agentd_probe_cached(probe))
		puts("\nFound earlier, since this machine started; --no-cache tries again.");
}

static void on_probed(agentd_probe *probe, const agentd_error *err, void *userdata)
{
	struct run *run = userdata;
	agentd_error *failure = NULL;
	char *json = NULL;

	if (!probe) {
		complain("%s", agentd_error_message(err));
		run->failed = true;
		return;
	}
	run->status = agentd_probe_level(probe, AGENTD_CAP_SANDBOX) > 0 ? 0 : STATUS_DENIED;
	if (!run->quiet)
		print_probe(probe);
	if (run->result) {
		int rc = agentd_probe_to_json(probe, &json, NULL, &failure);

		write_json(run, rc, json, failure);
	}
}

static int run_probe(struct run *run, const struct options *options)
{
	struct agentd_probe_opts opts = { .size = sizeof(opts),
					  .flags = options->no_cache ? AGENTD_PROBE_NO_CACHE : 0 };
	agentd_error *err = NULL;

	run->result = open_report("result", options->result_file);
	check(agentd_probe_start(&opts, on_probed, run, &err), "probe", NULL, &err);
	if (fflush(stdout) == EOF || ferror(stdout)) {
		complain("standard output: %s", strerror(errno));
		run->failed = true;
	}
	close_report(run, "result", run->result);
	return run->failed ? STATUS_FAILED : run->status;
}

/* libevent, which exits where it gets no descriptors, has said why. */
static void on_fatal(int error)
{
	(void)error;
	exit(STATUS_FAILED);
}

int main(int argc, char **argv)
{
	struct options options = { 0 };
	struct run run = { .options = &options, .status = STATUS_FAILED };
	agentd_params *params;

	/* A closed pipe at standard output is an error to report. */
	signal(SIGPIPE, SIG_IGN);
	fill_standard_fds();
	setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
	agentd_limits_init(&options.limits, sizeof(options.limits));
	parse_files(&options, argc, argv);
	run.quiet = options.quiet;
	if (options.probe)
		return run_probe(&run, &options);
	parse_command_line(&options, argc, argv);
	params = make_params(&options);
	event_set_fatal_callback(on_fatal);
	run.base = event_base_new();
	if (!run.base)
		die_nomem();
	if (options.stdin_open)
		input_prepare(&run);
	run.events = open_report("events", options.events_file);

	run_command(&run, &options, params);

	close_report(&run, "events", run.events);
	close_report(&run, "result", run.result);
	for (size_t i = 0; i < sizeof(run.signals) / sizeof(run.signals[0]); i++) {
		if (run.signals[i])
			event_free(run.signals[i]);
	}
	event_base_free(run.base);
	agentd_params_unref(params);
	agentd_context_unref(options.context);
	agentd_policy_unref(options.policy);
	libevent_global_shutdown();
	return run.failed ? STATUS_FAILED : run.status;
}
