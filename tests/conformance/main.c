/* SPDX-License-Identifier: MIT */
/* agentd-conformance: does a backend keep the contract of agentd/backend.h? */
#include <dlfcn.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <event2/event.h>

#include "conformance.h"
#include "harness.h"

enum { STATUS_USAGE = 2, STATUS_SKIP = 77 };

typedef int (*module_fn)(agentd_runner *runner, const char **ret_name, agentd_error **reterr);

static const char default_symbol[] = "agentd_conformance_add_backend";

static const char help_text[] =
	"usage: agentd-conformance --backend NAME [OPTION...]\n"
	"       agentd-conformance --backend-module FILE[:SYMBOL] [OPTION...]\n"
	"\n"
	"Puts a backend through the cases that every backend has to pass, and prints a line\n"
	"of TAP for each.\n"
	"\n"
	"  --backend NAME         host, sandbox or microvm\n"
	"  --backend-module FILE[:SYMBOL]\n"
	"                         a shared object, and the function in it that adds the backend\n"
	"                         to a runner (agentd_conformance_add_backend)\n"
	"  --features LIST        what it can do, of: tree, limits, host-fs, costly, brief, reader,\n"
	"                         refuses (a module's default: tree,limits,reader)\n"
	"  --only NAME            only this part, or this case\n"
	"  --list                 say what would be asked: a part and a case on each line\n"
	"  --help, --version\n"
	"\n"
	"Exit status: 0 if all passed, 1 if not, 2 for a wrong usage or module, 77 when the\n"
	"backend cannot run on this machine.\n";

static const struct {
	const char *name;
	uint32_t bit;
} feature_names[] = {
	{ "tree", CONF_TREE },       { "limits", CONF_LIMITS }, { "host-fs", CONF_HOST_FS },
	{ "costly", CONF_COSTLY },   { "brief", CONF_BRIEF },   { "reader", CONF_READER },
	{ "refuses", CONF_REFUSES },
};

static _Noreturn void usage(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
static _Noreturn void usage(const char *fmt, ...)
{
	va_list args;

	fputs("agentd-conformance: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(STATUS_USAGE);
}

static _Noreturn void skip(const char *reason)
{
	t_skip("%s", reason);
	printf("1..0 # SKIP %s\n", reason);
	exit(STATUS_SKIP);
}

static uint32_t parse_features(const char *list)
{
	uint32_t features = 0;

	while (*list) {
		size_t len = strcspn(list, ","), i = 0;

		while (i < T_COUNT(feature_names) &&
		       (strlen(feature_names[i].name) != len ||
			strncmp(feature_names[i].name, list, len) != 0))
			i++;
		if (i == T_COUNT(feature_names))
			usage("--features: '%.*s' is no feature", (int)len, list);
		features |= feature_names[i].bit;
		list += len + (list[len] == ',');
	}
	return features;
}

/* ---- a backend that comes from elsewhere */

static module_fn module;

static int add_module(agentd_runner *runner, agentd_error **reterr)
{
	const char *name = NULL;

	return module(runner, &name, reterr);
}

static void load_module(const char *where)
{
	const char *colon = strrchr(where, ':');
	const char *symbol = colon ? colon + 1 : default_symbol;
	char *file = t_format("%.*s", (int)(colon ? colon - where : (int)strlen(where)), where);
	void *handle, *address;

	if (!*file || !*symbol)
		usage("--backend-module: '%s' is not FILE or FILE:SYMBOL", where);
	handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		usage("--backend-module: %s", dlerror());
	address = dlsym(handle, symbol);
	if (!address)
		usage("--backend-module: %s has no function %s", file, symbol);
	memcpy(&module, &address, sizeof(module));
	free(file);
}

/* Its name, from a first runner that runs nothing. */
static const char *module_name(void)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts), .event_base = event_base_new() };
	agentd_runner *runner = NULL;
	agentd_error *err = NULL;
	const char *name = NULL;
	int r;

	if (agentd_runner_new(&opts, &runner, &err) < 0)
		usage("%s", agentd_error_message(err));
	r = module(runner, &name, &err);
	if (r == AGENTD_ERR_UNSUPPORTED)
		skip(err ? agentd_error_message(err) : agentd_strerror(r));
	if (r < 0)
		usage("the module did not add its backend: %s",
		      err ? agentd_error_message(err) : agentd_strerror(r));
	if (!name || !*name)
		usage("the module did not say what its backend is called");
	agentd_runner_unref(runner);
	event_base_free(opts.event_base);
	return name;
}

/* ---- the program */

enum { OPT_BACKEND = 1, OPT_MODULE, OPT_FEATURES, OPT_ONLY, OPT_LIST, OPT_HELP, OPT_VERSION };

static const struct option long_options[] = {
	{ "backend", required_argument, NULL, OPT_BACKEND },
	{ "backend-module", required_argument, NULL, OPT_MODULE },
	{ "features", required_argument, NULL, OPT_FEATURES },
	{ "only", required_argument, NULL, OPT_ONLY },
	{ "list", no_argument, NULL, OPT_LIST },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ NULL, 0, NULL, 0 },
};

/* getopt takes any unique beginning for an option. */
static void refuse_abbreviation(char **argv, const char *name)
{
	const char *word = argv[optarg == argv[optind - 1] ? optind - 2 : optind - 1];

	if (strcspn(word + 2, "=") != strlen(name))
		usage("unrecognized option '%.*s'", (int)strcspn(word, "="), word);
}

int main(int argc, char **argv)
{
	const uint32_t brief = getenv("AGENTD_TEST_FULL") ? 0 : CONF_BRIEF;
	const struct conf_backend builtin[] = {
		{ "host", NULL, CONF_TREE | CONF_LIMITS | CONF_HOST_FS | CONF_READER },
		{ "sandbox", NULL, CONF_TREE | CONF_LIMITS | CONF_READER },
		{ "microvm", NULL, CONF_TREE | CONF_LIMITS | CONF_COSTLY | brief },
	};
	struct conf_backend backend = { .features = CONF_TREE | CONF_LIMITS | CONF_READER };
	const char *features = NULL, *only = NULL, *where = NULL;
	bool list = false;
	int id, index = 0;

	while ((id = getopt_long(argc, argv, "+", long_options, &index)) != -1) {
		if (id != '?')
			refuse_abbreviation(argv, long_options[index].name);
		switch (id) {
		case OPT_BACKEND:
			backend.name = optarg;
			break;
		case OPT_MODULE:
			where = optarg;
			break;
		case OPT_FEATURES:
			features = optarg;
			break;
		case OPT_ONLY:
			only = optarg;
			break;
		case OPT_LIST:
			list = true;
			break;
		case OPT_HELP:
			fputs(help_text, stdout);
			return 0;
		case OPT_VERSION:
			printf("agentd-conformance %s\n", agentd_version_string());
			return 0;
		default:
			fputs("Try 'agentd-conformance --help'.\n", stderr);
			return STATUS_USAGE;
		}
	}
	if (optind < argc)
		usage("'%s' is no option", argv[optind]);
	if (!backend.name == !where)
		usage("give one of --backend and --backend-module");

	if (where) {
		load_module(where);
		backend.name = module_name();
		backend.add = add_module;
	} else {
		size_t i = 0;

		while (i < T_COUNT(builtin) && strcmp(backend.name, builtin[i].name) != 0)
			i++;
		if (i == T_COUNT(builtin))
			usage("--backend: '%s' is not built in; see --backend-module",
			      backend.name);
		backend = builtin[i];
	}
	if (features)
		backend.features = parse_features(features);
	if (!list && strcmp(backend.name, "microvm") == 0 && !t_can_host_machines())
		skip("there are no virtual machines here");
	return conformance_main(&backend, only, list);
}
