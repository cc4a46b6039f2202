"use strict";

SwaggerUIBundle({
  url: "../metadata.json", // relative, so that a path prefix of a proxy does no harm
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null, // nothing is sent to anybody else
});
