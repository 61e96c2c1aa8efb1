/* SPDX-License-Identifier: MIT */
/* The network of an execution whose policy allows some hosts: its proxy (egress/), and the
 * host program's answers where no rule decides. */
#include <string.h>
#include <unistd.h>

#include "core/core.h"
#include "egress/egress.h"
#include "sys/sys.h"

enum {
	ASK_TIMEOUT_MS = 60000,
	/* Answers "for this context" that are remembered; the next ones hold once. */
	REMEMBERED_MAX = 1024,
};

struct agentd_ask {
	ad_refcount refs;
	struct ad_list link; /* of the execution's open questions, which hold one reference */
	agentd_exec *exec;   /* NULL: answered, or over */
	struct ad_ask_state *state;
	uint32_t question;
	uint64_t until; /* who answers later is not heard */
	char *host;
	uint16_t port;
};

/* ---- what a context has: shared by it and its snapshots, also of other threads' runners */

struct remembered {
	char *host;
	uint16_t port;
};

struct ad_ask_state {
	ad_refcount refs;
	agentd_ask_fn ask;
	void *userdata;
	agentd_destroy_fn destroy;
	uint64_t timeout_ns;
	bool allow_by_default;
	pthread_mutex_t lock; /* of what follows */
	struct remembered *hosts;
	size_t host_count;
};

int ad_ask_state_new(const struct agentd_ask_opts *given, struct ad_ask_state **ret,
		     agentd_error **reterr)
{
	struct agentd_ask_opts opts;
	struct ad_ask_state *state;
	int r = ad_sized_copy(&opts, sizeof(opts), given, sizeof(opts), "struct agentd_ask_opts",
			      reterr);

	if (r < 0)
		return r;
	if (opts.reserved0)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL, "agentd_ask_opts.reserved0 is not 0");
	if (!opts.ask)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "agentd_ask_opts.ask is NULL");
	if (opts.fallback != AGENTD_ASK_DENY && opts.fallback != AGENTD_ASK_ONCE)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_ask_opts.fallback %d is neither DENY nor ONCE",
			       opts.fallback);
	state = calloc(1, sizeof(*state));
	if (!state)
		return ad_fail_nomem(reterr);
	atomic_init(&state->refs, 1);
	pthread_mutex_init(&state->lock, NULL);
	state->ask = opts.ask;
	state->userdata = opts.userdata;
	state->destroy = opts.destroy;
	state->timeout_ns = (opts.timeout_ms ? opts.timeout_ms : ASK_TIMEOUT_MS) * AD_NS_PER_MS;
	state->allow_by_default = opts.fallback == AGENTD_ASK_ONCE;
	*ret = state;
	return 0;
}

struct ad_ask_state *ad_ask_state_ref(struct ad_ask_state *state)
{
	if (state)
		ad_ref(&state->refs);
	return state;
}

void ad_ask_state_unref(struct ad_ask_state *state)
{
	if (!state || !ad_unref(&state->refs))
		return;
	if (state->destroy)
		state->destroy(state->userdata);
	for (size_t i = 0; i < state->host_count; i++)
		free(state->hosts[i].host);
	free(state->hosts);
	pthread_mutex_destroy(&state->lock);
	free(state);
}

static bool remembers(struct ad_ask_state *state, const char *host, uint16_t port)
{
	bool found = false;

	pthread_mutex_lock(&state->lock);
	for (size_t i = 0; i < state->host_count && !found; i++)
		found = state->hosts[i].port == port && strcmp(state->hosts[i].host, host) == 0;
	pthread_mutex_unlock(&state->lock);
	return found;
}

static int remember(struct ad_ask_state *state, const char *host, uint16_t port)
{
	struct remembered *grown = NULL;
	char *copy = strdup(host);

	pthread_mutex_lock(&state->lock);
	if (copy && state->host_count < REMEMBERED_MAX)
		grown = reallocarray(state->hosts, state->host_count + 1, sizeof(*grown));
	if (grown) {
		state->hosts = grown;
		grown[state->host_count++] = (struct remembered){ copy, port };
	}
	pthread_mutex_unlock(&state->lock);
	if (grown)
		return 0;
	free(copy);
	return copy ? AGENTD_ERR_LIMIT : AGENTD_ERR_NOMEM;
}

/* ---- questions */

agentd_ask *agentd_ask_ref(agentd_ask *ask)
{
	if (ask)
		ad_ref(&ask->refs);
	return ask;
}

void agentd_ask_unref(agentd_ask *ask)
{
	AD_KEEP_ERRNO;

	if (!ask || !ad_unref(&ask->refs))
		return;
	ad_ask_state_unref(ask->state);
	free(ask->host);
	free(ask);
}

const char *agentd_ask_host(const agentd_ask *ask)
{
	return ask ? ask->host : "";
}

int32_t agentd_ask_port(const agentd_ask *ask)
{
	return ask ? ask->port : 0;
}

agentd_exec *agentd_ask_exec(const agentd_ask *ask)
{
	return ask ? ask->exec : NULL;
}

/* Nobody waits for it any more. */
static void close_question(agentd_ask *ask)
{
	ask->exec = NULL;
	ad_list_remove(&ask->link);
	agentd_ask_unref(ask);
}

int agentd_ask_answer(agentd_ask *ask, int32_t answer, agentd_error **reterr)
{
	agentd_exec *exec;
	AD_KEEP_ERRNO;
	int r = 0;

	if (!ask)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ask is NULL");
	if (answer < AGENTD_ASK_DENY || answer > AGENTD_ASK_CONTEXT)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "answer %d is not an AGENTD_ASK_* value", answer);
	exec = ask->exec;
	if (!exec)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the question about %s:%u is over",
			       ask->host, ask->port);
	if (answer == AGENTD_ASK_CONTEXT)
		r = remember(ask->state, ask->host, ask->port);
	ad_egress_answer(exec->egress, ask->question, answer != AGENTD_ASK_DENY);
	close_question(ask);
	if (r == AGENTD_ERR_NOMEM)
		return ad_fail_nomem(reterr);
	return r < 0 ? ad_fail(reterr, r, NULL,
			       "allowed once: a context remembers no more than %d hosts",
			       REMEMBERED_MAX) :
		       0;
}

/* A command may ask without end: of what is over only that is kept which the host program has a
 * reference to. */
static void forget_questions(agentd_exec *exec)
{
	uint64_t now = ad_sys_now_ns();

	for (struct ad_list *node = exec->asks.next, *next; node != &exec->asks; node = next) {
		agentd_ask *ask = AD_CONTAINER_OF(node, agentd_ask, link);

		next = node->next;
		if (ask->until <= now && atomic_load(&ask->refs) == 1)
			close_question(ask);
	}
}

static void on_ask(uint32_t question, const char *host, uint16_t port, void *userdata)
{
	agentd_exec *exec = userdata;
	struct ad_ask_state *state = exec->context->ask;
	agentd_ask *ask;

	if (remembers(state, host, port)) {
		ad_egress_answer(exec->egress, question, true);
		return;
	}
	forget_questions(exec);
	ask = calloc(1, sizeof(*ask));
	if (ask)
		ask->host = strdup(host);
	if (!ask || !ask->host) {
		free(ask);
		ad_egress_answer(exec->egress, question, false);
		return;
	}
	atomic_init(&ask->refs, 2);
	ask->exec = exec;
	ask->state = ad_ask_state_ref(state);
	ask->question = question;
	ask->until = ad_sys_now_ns() + state->timeout_ns;
	ask->port = port;
	ad_list_append(&exec->asks, &ask->link);
	state->ask(ask, state->userdata);
	agentd_ask_unref(ask);
}

/* ---- the proxy */

static void on_denied(const char *target, const char *rule, const char *remedy, void *userdata)
{
	agentd_exec *exec = userdata;

	agentd_task_denied(&exec->task, "net", target, rule, remedy);
}

static void on_spent(void *userdata)
{
	agentd_exec *exec = userdata;

	agentd_task_limit_hit(&exec->task, "net_bytes", false);
}

static int make_egress(agentd_exec *exec, agentd_error **reterr)
{
	agentd_runner *runner = exec->runner;
	struct ad_ask_state *state = exec->context->ask;
	struct ad_egress_opts opts = {
		.loop = runner->loop,
		.ceiling = exec->spec.policy[0],
		.policy = exec->spec.policy[1],
		.denied = on_denied,
		.ask = state ? on_ask : NULL,
		.ask_ns = state ? state->timeout_ns : 0,
		.ask_default = state && state->allow_by_default,
		.bytes_max = exec->spec.limits.net_bytes,
		.spent = on_spent,
		.userdata = exec,
		.resolver = runner->resolver,
	};

	return ad_egress_new(&opts, &exec->egress, reterr);
}

int ad_exec_net_attach(agentd_exec *exec, int fd)
{
	agentd_error *err = NULL;
	int r = 0;

	if (exec->spec.net != AGENTD_NET_ALLOWLIST || exec->egress) {
		close(fd);
		return AGENTD_ERR_STATE;
	}
	r = make_egress(exec, &err);
	if (r < 0)
		close(fd);
	else
		r = ad_egress_listen(exec->egress, fd, &err);
	if (r < 0 && !exec->error)
		exec->error = AD_STEAL(err);
	agentd_error_unref(err);
	return r;
}

int ad_exec_net_serve(agentd_exec *exec, int fd)
{
	int r = 0;

	if (exec->spec.net != AGENTD_NET_ALLOWLIST)
		r = AGENTD_ERR_STATE;
	else if (!exec->egress)
		r = make_egress(exec, NULL);
	if (r < 0) {
		close(fd);
		return r;
	}
	return ad_egress_serve(exec->egress, fd);
}

void ad_exec_net_close(agentd_exec *exec)
{
	const struct ad_egress_counts *counts;

	while (!ad_list_empty(&exec->asks))
		close_question(AD_CONTAINER_OF(exec->asks.next, agentd_ask, link));
	if (!exec->egress)
		return;
	counts = ad_egress_counts(exec->egress);
	ad_exec_set_metric(exec, AGENTD_METRIC_NET_CONNECTIONS, counts->connections);
	ad_exec_set_metric(exec, AGENTD_METRIC_NET_SENT_BYTES, counts->sent);
	ad_exec_set_metric(exec, AGENTD_METRIC_NET_RECEIVED_BYTES, counts->received);
	ad_egress_free(AD_STEAL(exec->egress));
}
