// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The least that a client of the channel can do: posts the batches of a tape, waits, copies the
 * replies. What a campaign costs beyond the machine under test is measured beside it.
 *
 * client CHANNEL < TAPE: CHANNEL is the number of an open file. The tape holds the size of a block
 * of configurations, then for each batch that block, a count and its requests. Prints the
 * nanoseconds that all batches but the first took; the first makes the VMs.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

static uint8_t configs[SLOTS * sizeof(struct config)];
static struct request requests[CAPACITY];
static struct reply replies[CAPACITY];

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void wait_for_idle(volatile struct header *h)
{
	long pause = 20000;

	while (h->state != IDLE) {
		struct timespec t = {0, pause};

		nanosleep(&t, NULL);
		pause = pause < 1000000 ? pause * 3 / 2 : pause;
	}
}

int main(int count, char **words)
{
	volatile struct header *h;
	uint32_t block, batch;
	uint64_t spent = 0;
	uint8_t *channel;

	if (count != 2 || fread(&block, sizeof(block), 1, stdin) != 1 || block > sizeof(configs))
		return 2;
	channel = mmap(NULL, CHANNEL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(words[1]), 0);
	if (channel == MAP_FAILED)
		return 3;
	h = (struct header *)channel;
	for (uint32_t number = 0; fread(configs, 1, block, stdin) == block; number++) {
		uint64_t start;

		if (fread(&batch, sizeof(batch), 1, stdin) != 1 || batch > CAPACITY ||
		    fread(requests, sizeof(requests[0]), batch, stdin) != batch)
			return 2;
		start = now();
		memcpy(channel + CONFIGS_AT, configs, block);
		memcpy(channel + REQUESTS_AT, requests, batch * sizeof(requests[0]));
		h->count = batch;
		h->done = 0;
		__sync_synchronize();
		h->state = REQUESTED;
		wait_for_idle(h);
		memcpy(replies, channel + REPLIES_AT, batch * sizeof(replies[0]));
		spent += number ? now() - start : 0;
	}
	printf("%llu\n", (unsigned long long)spent);
	return 0;
}
