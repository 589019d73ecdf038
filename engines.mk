# Engines to run pipelines on: Prism, a Flink cluster, a Spark cluster.

##@ On real engines (needs Go, Java 17 and Maven; 900 MB)

ENGINES := $(BEAM_ENTRA_CACHE)/engines/.fetched

.PHONY: engines test-engines soak soak-stream

engines: $(ENGINES) ## Fetch Prism, Flink, Spark and their job servers into .local/engines

test-engines: $(DEVELOPER) $(AZURITE) ## Run the sample and its mishaps on each (TESTS="-k flink" for some)
	@$(MAKE) engines || echo "Going on with the engines that are there."
	@exec $(RUN) -m pytest -m engine $(SPREAD) $(wildcard tests/engines tests/chaos) $(TESTS)

soak: $(DEVELOPER) $(AZURITE) $(ENGINES) ## Kill workers, TaskManagers and Storage under jobs, at random (KILLS=200; SEED=1 to repeat)
	@CHAOS_KILLS=$(or $(KILLS),200) $(addprefix CHAOS_SEED=,$(SEED)) \
		exec $(RUN) -m pytest -m engine -n 0 -s tests/chaos $(TESTS)

soak-stream: $(DEVELOPER) $(AZURITE) $(ENGINES) ## Run a stream on Prism through many lives of its tokens, five seconds each (LIVES=50)
	@STREAM_TOKEN_LIVES=$(or $(LIVES),50) \
		exec $(RUN) -m pytest -m engine -n 0 -s tests/engines/test_streaming.py -k prism $(TESTS)

$(ENGINES): tests/engines/fetch.py $(wildcard tests/engines/*.txt) tests/engines/job_servers/pom.xml | $(INSTALLED)
	@$(RUN) tests/engines/fetch.py
	@touch $@
