/* SPDX-License-Identifier: MIT */
/* What a command says to its proxy, and what rules make of the host it names. */
#include "fuzz.h"

#include <string.h>
#include <sys/socket.h>

#include "egress/private.h"

static void check_host(const struct ad_net_host *host, uint16_t port)
{
	static const char rules[] =
		"{\"net\":{\"mode\":\"allow\",\"allow\":[\"*.test\",\"0.0.0.0/0\"],"
		"\"deny\":[\"127.0.0.0/8\",\"a.test\"]}}";
	static agentd_policy *policy;
	struct ad_net_answer answer;
	struct ad_net_host again;

	if (!policy)
		FUZZ_CHECK(agentd_policy_from_json(rules, sizeof(rules) - 1, &policy, NULL) == 0);
	/* One spelling, that is its own. */
	FUZZ_CHECK(ad_net_host_parse(&again, host->text));
	FUZZ_CHECK(strcmp(again.text, host->text) == 0 && again.family == host->family);
	ad_net_check(policy, policy, host, port, &answer);
	/* Names may begin so: 127.0.a.test. */
	FUZZ_CHECK(answer.verdict != AD_NET_ALLOWED || host->family != AF_INET ||
		   strncmp(host->text, "127.", 4) != 0);
	FUZZ_CHECK(answer.verdict != AD_NET_ALLOWED || strcmp(host->text, "a.test") != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ad_request request = { .greeted = false };
	enum ad_request_verdict verdict = ad_request_parse(&request, data, size);

	if (verdict == AD_REQUEST_GREETING) {
		FUZZ_CHECK(request.greeted && request.used <= size);
		verdict = ad_request_parse(&request, data + request.used, size - request.used);
		FUZZ_CHECK(verdict != AD_REQUEST_GREETING);
	}
	if (verdict == AD_REQUEST_DONE) {
		FUZZ_CHECK(request.port != 0 && request.used > 0 && request.used <= size);
		check_host(&request.host, request.port);
		if (request.kind == AD_REQUEST_FORWARD) {
			/* One head, and no more than one. */
			FUZZ_CHECK(request.head.len > 4);
			FUZZ_CHECK(strstr(request.head.data, "\r\n\r\n") ==
				   request.head.data + request.head.len - 4);
		}
	} else if (verdict == AD_REQUEST_BAD) {
		FUZZ_CHECK(request.status >= 400 && request.why && *request.why);
	}
	ad_buf_free(&request.head);
	return 0;
}
