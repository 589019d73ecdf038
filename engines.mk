# Engines to run pipelines on: Prism, a Flink cluster, a Spark cluster. They need Go, Java 17 and Maven, and take 900 MB.

ENGINES := $(BEAM_ENTRA_CACHE)/engines/.fetched

.PHONY: engines test-engines

engines: $(ENGINES) ## Fetch Prism, Flink, Spark and their job servers into .local/engines

test-engines: $(INSTALLED) $(AZURITE) $(ENGINES) ## Run the sample pipeline on each of them (TESTS="-k flink" for some)
	@exec $(RUN) -m pytest -m engine -n 0 tests/engines $(TESTS)

$(ENGINES): tests/engines/fetch.py tests/engines/requirements.txt tests/engines/job_servers/pom.xml | $(INSTALLED)
	@$(RUN) tests/engines/fetch.py
	@touch $@
