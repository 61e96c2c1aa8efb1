/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "core/core.h"
#include "json/json.h"

static const char *const status_names[] = { "ok", "error", "denied", "timeout", "killed" };

static const char *const cause_names[] = {
	[AGENTD_CAUSE_EXITED] = "exited",       [AGENTD_CAUSE_SIGNALED] = "signaled",
	[AGENTD_CAUSE_TIMEOUT] = "timeout",     [AGENTD_CAUSE_IDLE_TIMEOUT] = "idle_timeout",
	[AGENTD_CAUSE_CPU_TIME] = "cpu_time",   [AGENTD_CAUSE_MEMORY] = "memory",
	[AGENTD_CAUSE_PIDS] = "pids",           [AGENTD_CAUSE_IO] = "io",
	[AGENTD_CAUSE_OUTPUT] = "output",       [AGENTD_CAUSE_CANCELED] = "canceled",
	[AGENTD_CAUSE_SINK] = "sink",           [AGENTD_CAUSE_VIOLATION] = "violation",
	[AGENTD_CAUSE_POLICY] = "policy",       [AGENTD_CAUSE_ISOLATION] = "isolation",
	[AGENTD_CAUSE_SPAWN] = "spawn",         [AGENTD_CAUSE_BACKEND_LOST] = "backend_lost",
	[AGENTD_CAUSE_FILE_SIZE] = "file_size",
};

const char *agentd_status_name(agentd_status status)
{
	return status >= 0 && (size_t)status < AD_COUNT(status_names) ? status_names[status] :
									"unknown";
}

const char *agentd_cause_name(int32_t cause)
{
	const char *name = NULL;

	if (cause >= 0 && (size_t)cause < AD_COUNT(cause_names))
		name = cause_names[cause];
	return name ? name : "unknown";
}

int ad_receipt_set(struct ad_receipt *receipt, const char *layer, int32_t state, const char *reason)
{
	size_t layer_size = strlen(layer) + 1, reason_size = strlen(reason) + 1;
	struct ad_receipt_line *entry = NULL;
	char *text;

	for (size_t i = 0; i < receipt->count; i++)
		if (strcmp(receipt->layers[i].layer, layer) == 0)
			entry = &receipt->layers[i];
	text = malloc(layer_size + reason_size);
	if (!text)
		return AGENTD_ERR_NOMEM;
	if (!entry && receipt->count == receipt->cap) {
		size_t cap = receipt->cap ? 2 * receipt->cap : 16;
		struct ad_receipt_line *grown = reallocarray(receipt->layers, cap, sizeof(*grown));

		if (!grown) {
			free(text);
			return AGENTD_ERR_NOMEM;
		}
		receipt->layers = grown;
		receipt->cap = cap;
	}
	if (entry)
		free(entry->layer);
	else
		entry = &receipt->layers[receipt->count++];
	memcpy(text, layer, layer_size);
	memcpy(text + layer_size, reason, reason_size);
	*entry = (struct ad_receipt_line){ text, text + layer_size, state };
	return 0;
}

void ad_receipt_clear(struct ad_receipt *receipt)
{
	for (size_t i = 0; i < receipt->count; i++)
		free(receipt->layers[i].layer);
	free(receipt->layers);
	*receipt = (struct ad_receipt){ 0 };
}

agentd_result *ad_result_new(void)
{
	agentd_result *result = calloc(1, sizeof(*result));

	if (result) {
		result->refs = 1;
		result->exit_code = -1;
	}
	return result;
}

agentd_result *agentd_result_ref(agentd_result *result)
{
	if (result)
		ad_ref(&result->refs);
	return result;
}

void agentd_result_unref(agentd_result *result)
{
	if (!result || !ad_unref(&result->refs))
		return;
	agentd_error_unref(result->error);
	ad_receipt_clear(&result->receipt);
	ad_context_state_unref(result->context);
	free(result);
}

agentd_status agentd_result_status(const agentd_result *result)
{
	return result ? result->status : AGENTD_STATUS_ERROR;
}

int32_t agentd_result_cause(const agentd_result *result)
{
	return result ? result->cause : 0;
}

const char *agentd_result_backend(const agentd_result *result)
{
	return result ? result->backend : "";
}

int32_t agentd_result_exit_code(const agentd_result *result)
{
	return result ? result->exit_code : -1;
}

int32_t agentd_result_signal(const agentd_result *result)
{
	return result ? result->signo : 0;
}

const char *agentd_result_limit(const agentd_result *result)
{
	return result ? result->limit : "";
}

int32_t agentd_result_truncated(const agentd_result *result)
{
	return result && result->truncated;
}

const agentd_error *agentd_result_error(const agentd_result *result)
{
	return result ? result->error : NULL;
}

int agentd_result_metric(const agentd_result *result, int32_t metric, uint64_t *ret)
{
	if (!result || !ret)
		return AGENTD_ERR_INVALID;
	if (metric <= 0 || metric >= AD_METRIC_COUNT || !(result->metrics_known >> metric & 1u))
		return AGENTD_ERR_NOTFOUND;
	*ret = result->metrics[metric];
	return 0;
}

size_t agentd_result_protection_count(const agentd_result *result)
{
	return result ? result->receipt.count : 0;
}

int agentd_result_protection_at(const agentd_result *result, size_t i, const char **ret_layer,
				int32_t *ret_state, const char **ret_reason)
{
	if (!result || i >= result->receipt.count)
		return AGENTD_ERR_NOTFOUND;
	if (ret_layer)
		*ret_layer = result->receipt.layers[i].layer;
	if (ret_state)
		*ret_state = result->receipt.layers[i].state;
	if (ret_reason)
		*ret_reason = result->receipt.layers[i].reason;
	return 0;
}

const char *ad_layer_state_name(int32_t state)
{
	if (state == AGENTD_LAYER_ENFORCED)
		return "enforced";
	return state == AGENTD_LAYER_DEGRADED ? "degraded" : "absent";
}

const char *ad_isolation_name(int32_t isolation)
{
	if (isolation >= AGENTD_ISOLATION_VM)
		return "vm";
	return isolation >= AGENTD_ISOLATION_SANDBOX ? "sandbox" : "none";
}

static struct json_object *receipt_json(const agentd_result *result, bool *ok)
{
	struct json_object *receipt = ad_json_object(), *requested = ad_json_object(),
			   *layers = ad_json_array();

	if (result->context->backend)
		*ok &= ad_json_add_string(requested, "backend", result->context->backend);
	else
		*ok &= ad_json_add_null(requested, "backend");
	*ok &= ad_json_add_string(requested, "min_isolation",
				  ad_isolation_name(result->asked_isolation));
	for (size_t i = 0; i < result->receipt.count; i++) {
		const struct ad_receipt_line *layer = &result->receipt.layers[i];
		struct json_object *entry = ad_json_object();

		*ok &= ad_json_add_string(entry, "layer", layer->layer);
		*ok &= ad_json_add_string(entry, "state", ad_layer_state_name(layer->state));
		*ok &= ad_json_add_string(entry, "reason", layer->reason);
		*ok &= ad_json_add_value(layers, NULL, entry);
	}
	*ok &= ad_json_add_value(receipt, "requested", requested);
	*ok &= ad_json_add_value(receipt, "layers", layers);
	return receipt;
}

static struct json_object *error_json(const agentd_error *err, bool *ok)
{
	struct json_object *json = ad_json_object();

	*ok &= ad_json_add_i64(json, "code", agentd_error_code(err));
	*ok &= ad_json_add_string(json, "name", agentd_strerror(agentd_error_code(err)));
	*ok &= ad_json_add_string(json, "message", agentd_error_message(err));
	*ok &= ad_json_add_i64(json, "os_errno", agentd_error_os_errno(err));
	*ok &= ad_json_add_string(json, "pointer", agentd_error_pointer(err));
	return json;
}

static struct json_object *metrics_json(const agentd_result *result, bool *ok)
{
	static const struct {
		int32_t metric;
		const char *name;
	} names[] = {
		{ AGENTD_METRIC_WALL_NS, "wall_ns" },
		{ AGENTD_METRIC_CPU_NS, "cpu_ns" },
		{ AGENTD_METRIC_MEMORY_PEAK_BYTES, "memory_peak_bytes" },
		{ AGENTD_METRIC_STDOUT_BYTES, "stdout_bytes" },
		{ AGENTD_METRIC_STDERR_BYTES, "stderr_bytes" },
		{ AGENTD_METRIC_DROPPED_BYTES, "dropped_bytes" },
		{ AGENTD_METRIC_STARTUP_NS, "startup_ns" },
		{ AGENTD_METRIC_NET_CONNECTIONS, "net_connections" },
		{ AGENTD_METRIC_NET_SENT_BYTES, "net_sent_bytes" },
		{ AGENTD_METRIC_NET_RECEIVED_BYTES, "net_received_bytes" },
	};
	struct json_object *json = ad_json_object();

	for (size_t i = 0; i < AD_COUNT(names); i++) {
		uint64_t value;

		if (agentd_result_metric(result, names[i].metric, &value) == 0)
			*ok &= ad_json_add_u64(json, names[i].name, value);
	}
	return json;
}

int agentd_result_to_json(const agentd_result *result, char **ret, size_t *ret_len,
			  agentd_error **reterr)
{
	struct json_object *json, *labels;
	bool ok = true;

	if (!result || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       result ? "ret" : "result");
	json = ad_json_object();
	ok &= ad_json_add_i64(json, "schema", 1);
	ok &= ad_json_add_string(json, "id", result->id);
	ok &= ad_json_add_string(json, "status", agentd_status_name(result->status));
	ok &= ad_json_add_string(json, "cause", agentd_cause_name(result->cause));
	ok &= ad_json_add_string(json, "backend", result->backend);
	ok &= result->exit_code >= 0 ? ad_json_add_i64(json, "exit_code", result->exit_code) :
				       ad_json_add_null(json, "exit_code");
	ok &= result->signo ? ad_json_add_i64(json, "signal", result->signo) :
			      ad_json_add_null(json, "signal");
	ok &= result->limit[0] ? ad_json_add_string(json, "limit", result->limit) :
				 ad_json_add_null(json, "limit");
	ok &= ad_json_add_bool(json, "truncated", result->truncated);
	ok &= result->error ? ad_json_add_value(json, "error", error_json(result->error, &ok)) :
			      ad_json_add_null(json, "error");
	ok &= ad_json_add_value(json, "metrics", metrics_json(result, &ok));
	ok &= ad_json_add_u64(json, "duration_ms",
			      result->metrics[AGENTD_METRIC_WALL_NS] / AD_NS_PER_MS);
	ok &= ad_json_add_u64(json, "denied_count", result->denied_count);
	ok &= ad_json_add_value(json, "receipt", receipt_json(result, &ok));
	ok &= result->context->trace_id ?
		      ad_json_add_string(json, "trace_id", result->context->trace_id) :
		      ad_json_add_null(json, "trace_id");
	labels = ad_json_object();
	for (size_t i = 0; i < result->context->label_count; i++)
		ok &= ad_json_add_string(labels, result->context->labels[i].key,
					 result->context->labels[i].value);
	ok &= ad_json_add_value(json, "labels", labels);
	return ad_json_to_text(json, ok, ret, ret_len, reterr);
}
